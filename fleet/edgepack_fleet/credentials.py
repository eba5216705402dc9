"""What a member of the fleet is given to prove itself: its MAC key, once, and its certificates."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from edgepack_contract.canonical import decode
from edgepack_contract.certificates import Authority
from edgepack_contract.dsse import claimed_payload
from edgepack_contract.enrolment import (
    COMEBACK_DAYS,
    BrokerAddress,
    Membership,
    Renewal,
    RenewalAnswer,
    open_renewal,
)
from edgepack_contract.errors import UntrustedDocumentError
from edgepack_contract.keys import PublicKey
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_fleet.authority import issue_certificate
from edgepack_fleet.config import FleetConfig
from edgepack_fleet.db.schema import CertificateRow, Device
from edgepack_fleet.errors import BrokerError, NotAdmittedError, NotFoundError
from edgepack_fleet.membership import Status

COMEBACK_MS = COMEBACK_DAYS * 86_400_000


@dataclass(frozen=True, slots=True)
class Papers:
    """What every member is given alike. Without an authority there are no certificates."""

    tenant: str
    keyring: bytes
    authority: Authority | None


def broker_address(config: FleetConfig, public_url: str) -> BrokerAddress:
    """Where devices reach the broker: as ``[enrolment]`` says, else where this service does.

    Raises:
        BrokerError: With code ``broker-address``: devices on other machines could not use it, or
            only in the clear.
    """
    said, ours = config.enrolment, config.mqtt
    address = BrokerAddress(
        host=said.broker_host or ours.host,
        port=said.broker_port or ours.port,
        tls=ours.tls_ca is not None if said.broker_tls is None else said.broker_tls,
    )
    if is_loopback(urlsplit(public_url).hostname or "") or (
        address.tls and not is_loopback(address.host)
    ):
        return address
    raise BrokerError(
        f"devices would be told to reach the broker at {address.host}:{address.port} "
        f"{'with' if address.tls else 'without'} TLS, which is of no use on other machines; set "
        "enrolment.broker_host, broker_port and broker_tls = true to where they reach it",
        code="broker-address",
    )


def membership_of(
    session: Session, device: Device, papers: Papers, broker: BrokerAddress, *, now_ms: int
) -> Membership:
    """Everything that an accepted device needs."""
    certificate: CertificateRow | None = None
    if papers.authority is not None:
        certificate = issue_certificate(session, papers.authority, device, now_ms=now_ms)
    return Membership(
        tenant=papers.tenant,
        device=device.id,
        mac_key=device.mac_key.hex(),
        keyring=papers.keyring.decode(),
        broker=broker,
        certificate=None if certificate is None else certificate.pem,
        certificate_expires=None if certificate is None else certificate.expires_ms,
    )


def renew(
    session: Session, raw: bytes, papers: Papers, *, now_ms: int
) -> tuple[RenewalAnswer, CertificateRow]:
    """Answer a renewal: the certificate may have expired, the membership may not have ended.

    Raises:
        MalformedDocumentError: It does not decode.
        NotAdmittedError: ``bad-renewal`` when no device of ours signed it, whatever else is wrong;
            ``revoked`` or ``decommissioned``; ``enrol-anew`` when it comes too late.
        NotFoundError: This service issues no certificates.
    """
    device, renewal = _signed_renewal(session, raw, papers.tenant)
    _refuse_ended(device, now_ms)
    if papers.authority is None:
        raise NotFoundError(
            "this service issues no certificates: keys.authority is not set", code="no-authority"
        )
    row = issue_certificate(session, papers.authority, device, now_ms=now_ms)
    answer = RenewalAnswer(
        nonce=renewal.nonce,
        certificate=row.pem,
        certificate_expires=row.expires_ms,
        keyring=papers.keyring.decode(),
    )
    return answer, row


def _signed_renewal(session: Session, raw: bytes, tenant: str) -> tuple[Device, Renewal]:
    what, most = "renewal", LIMITS.message_bytes
    body = claimed_payload(raw, what=what, max_bytes=most)
    claimed = decode(body, Renewal, what=what, max_bytes=most)
    device = session.get(Device, claimed.device)
    if device is None or (device.tenant, tenant) != (claimed.tenant, claimed.tenant):
        raise _not_ours()
    try:
        renewal = open_renewal(raw, PublicKey.from_pem(device.public_key.encode()))
    except UntrustedDocumentError as error:
        raise _not_ours() from error
    if renewal.enrolment != device.enrolment:
        raise _not_ours()
    return device, renewal


def _not_ours() -> NotAdmittedError:
    return NotAdmittedError(
        "no device of this fleet signed this renewal; if this device was enrolled anew elsewhere, "
        "or removed, enrol it again with a new join string",
        code="bad-renewal",
    )


def _refuse_ended(device: Device, now_ms: int) -> None:
    if device.status != Status.ACCEPTED:
        raise NotAdmittedError(
            f"{device.id} was {device.status}: its certificate is not renewed; to let it in again, "
            "enrol it with a new key and a new join string",
            code=device.status,
        )
    ended = device.certificate_expires_ms
    if ended is not None and now_ms > ended + COMEBACK_MS:
        raise NotAdmittedError(
            f"the certificate of {device.id} ended {(now_ms - ended) // 86_400_000} days ago, more "
            f"than the {COMEBACK_DAYS} after which it can come back by itself; enrol it with a new "
            "key and a new join string",
            code="enrol-anew",
        )
