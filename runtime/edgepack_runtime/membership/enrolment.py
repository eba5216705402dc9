"""How this device asks a fleet to take it in: first contact, the wish, the wait, the checks.

At first contact nothing is believed but the owner that the join string pins: the keyring is fetched
without a look at certificates, proves itself against that owner, and says whose certificates count.
Only then the token is sent.
"""

from __future__ import annotations

import hmac
import random
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography import x509

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.certificates import (
    certificate_key,
    common_name,
    make_request,
    read_certificate,
)
from edgepack_contract.clock import TrustedClock
from edgepack_contract.enrolment import (
    BrokerAddress,
    EnrolAnswer,
    EnrolRequest,
    JoinString,
    Membership,
    Standing,
)
from edgepack_contract.errors import MalformedDocumentError, UntrustedDocumentError
from edgepack_contract.keyring import Keyring, open_keyring
from edgepack_contract.keys import PrivateKey, PublicKey
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_contract.names import is_id
from edgepack_contract.sealing import MAC_KEY_BYTES
from edgepack_contract.tls import client_context
from edgepack_runtime.errors import FleetBusyError, FleetUnavailableError, StillPendingError
from edgepack_runtime.membership.fleet_client import FleetClient, Patience, printable, unchecked

KEYRING_PATH = "/api/v1/keyring"
ENROL_PATH = "/api/v1/enrol"
LONGEST_PAUSE_SECONDS = 60.0

_MAC_KEY = re.compile(rf"\A[0-9a-f]{{{2 * MAC_KEY_BYTES}}}\Z")
_HOST = re.compile(r"\A[A-Za-z0-9.:_-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class Wish:
    """The id and the labels that this device would like to have."""

    device: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Waiting:
    """How to wait until somebody approves this device.

    Attributes:
        seconds: For how long.
        monotonic: Seconds that only grow.
        sleep: Waits for some seconds.
        rng: Spreads devices that wait for the same person.
        tell: Says something to who watches.
    """

    seconds: float
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    rng: random.Random
    tell: Callable[[str], None]


def join_fleet(
    join: JoinString,
    key: PrivateKey,
    wish: Wish,
    *,
    clock: TrustedClock,
    waiting: Waiting,
    patience: Patience | None = None,
) -> Membership:
    """Ask to be taken in, and wait for the answer.

    Returns:
        What the fleet gives its member, checked.

    Raises:
        FleetUnavailableError: The fleet does not answer.
        FleetUntrustedError: What answers has not the certificate it should have.
        FleetRefusedError: It refuses the token, the id or the device; the code is the fleet's.
        StillPendingError: Nobody has approved the device in time; the same wish can be repeated.
        MalformedDocumentError: An answer is not what the protocol says.
        UntrustedDocumentError: The fleet is not of the pinned owner (``wrong-owner``), it is a demo
            on another machine (``demo-keyring``), or what it gives does not belong to this device.
    """
    keyring = first_contact(join, clock=clock, patience=patience)
    tls = client_context(keyring.authorities, clock=clock)
    client = FleetClient(join.url, tls=tls, patience=patience)
    member = _until_decided(client, join, key, wish, waiting)
    check_member(member, key=key.public, owner=join.owner, seen=keyring, now_ms=clock.now_ms())
    return member


def first_contact(
    join: JoinString, *, clock: TrustedClock, patience: Patience | None = None
) -> Keyring:
    """The fleet's keyring, proven by the pinned owner; its date is the first that is believed.

    Raises:
        FleetError: It is not there to be had.
        MalformedDocumentError: What answers is not a fleet service.
        UntrustedDocumentError: It is another owner's (``wrong-owner``), or a demo's.
    """
    client = FleetClient(join.url, tls=unchecked(), patience=patience)
    raw = client.get(KEYRING_PATH, max_bytes=LIMITS.keyring_bytes)
    keyring = _of_owner(raw, join)
    if keyring.demo and not join.is_local:
        raise UntrustedDocumentError(
            f"{join.url} has the keyring of a demo, whose keys are no secret, and is another "
            "machine; make keys with: edgepack keys init FOLDER",
            code="demo-keyring",
        )
    clock.learn_of_owner(keyring.issued)
    return keyring


def check_member(
    member: Membership, *, key: PublicKey, owner: str, seen: Keyring, now_ms: int
) -> None:
    """Check that what the fleet gives belongs to this device, and can be used.

    Args:
        member: What the fleet gives.
        key: This device's public key.
        owner: The pinned owner.
        seen: The keyring of the first contact, which may not be newer.
        now_ms: The trusted time, milliseconds since 1970 UTC.

    Raises:
        MalformedDocumentError: It cannot be used, or the keyring has become older.
        UntrustedDocumentError: It is for another device or key, or not signed by the owner.
    """
    if not (is_id(member.device) and is_id(member.tenant) and _MAC_KEY.match(member.mac_key)):
        raise MalformedDocumentError(
            "the fleet gave an id or a MAC key of another form than the protocol's",
            code="bad-membership",
        )
    open_keyring(member.keyring.encode(), owner_fingerprint=owner, minimum_version=seen.version)
    _check_broker(member.broker, certified=member.certificate is not None)
    if member.certificate is not None:
        check_certificate(member.certificate, key=key, device=member.device, now_ms=now_ms)


def check_certificate(pem: str, *, key: PublicKey, device: str, now_ms: int) -> x509.Certificate:
    """Read a certificate that should be this device's.

    Raises:
        SigningKeyError: It is not a certificate.
        UntrustedDocumentError: It is for another key or device (``wrong-certificate``), or has
            ended already (``expired-certificate``).
    """
    certificate = read_certificate(pem.encode())
    ours = certificate_key(certificate).fingerprint == key.fingerprint
    if not ours or common_name(certificate) != device:
        raise UntrustedDocumentError(
            f"the fleet's certificate is for {printable(common_name(certificate))!r}, not for "
            f"{device!r} with key {key.fingerprint[:16]}",
            code="wrong-certificate",
        )
    if certificate.not_valid_after_utc.timestamp() * 1000 <= now_ms:
        raise UntrustedDocumentError(
            f"the fleet's certificate ended {certificate.not_valid_after_utc:%Y-%m-%d}; check the "
            "clocks of the fleet service and of this device",
            code="expired-certificate",
        )
    return certificate


def pause_seconds(asked: float, attempt: int, rng: random.Random) -> float:
    """How long to wait before asking again: what the fleet asks for, longer every time, spread."""
    grown = min(asked * 1.5 ** min(attempt, 64), LONGEST_PAUSE_SECONDS)
    return max(asked, grown) * rng.uniform(1.0, 1.25)


def _of_owner(raw: bytes, join: JoinString) -> Keyring:
    try:
        return open_keyring(raw, owner_fingerprint=join.owner)
    except UntrustedDocumentError as error:
        raise UntrustedDocumentError(
            f"{join.url} is not the fleet of owner {join.owner[:16]}..: somebody is in between, or "
            f"the join string is of another fleet ({error})",
            code="wrong-owner",
        ) from error
    except MalformedDocumentError as error:
        raise MalformedDocumentError(
            f"what answers at {join.url} is not a fleet service: {error}", code="not-a-fleet"
        ) from error


def _until_decided(
    client: FleetClient, join: JoinString, key: PrivateKey, wish: Wish, waiting: Waiting
) -> Membership:
    deadline = waiting.monotonic() + waiting.seconds
    asked, attempt, told = 10.0, 0, False
    trouble: FleetUnavailableError | None
    while True:
        try:
            answer = _ask(client, join, key, wish)
        except FleetUnavailableError as error:
            # whoever has waited for a person also waits for a service that is started anew, and
            # whoever is one of many behind an address for the others
            trouble = error
            if attempt == 0 and not isinstance(error, FleetBusyError):
                raise
            waiting.tell(str(error))
        else:
            trouble = None
            if answer.member is not None:
                return answer.member
            asked = answer.retry_seconds
            if not told:
                waiting.tell(_pending_words(answer, key, wish))
                told = True
        left = deadline - waiting.monotonic()
        if left <= 0 and trouble is not None and not told:
            raise trouble
        if left <= 0:
            raise StillPendingError(
                f"nobody has approved {wish.device} yet; run the same command again to go on, "
                f"the key is kept. To approve it: edgepack device approve {wish.device}"
            )
        waiting.sleep(min(pause_seconds(asked, attempt, waiting.rng), left))
        attempt += 1


def _ask(client: FleetClient, join: JoinString, key: PrivateKey, wish: Wish) -> EnrolAnswer:
    nonce = secrets.token_hex(16)
    request = EnrolRequest(
        token=join.token,
        request=make_request(key, name=wish.device).decode(),
        labels=dict(wish.labels),
        nonce=nonce,
    )
    most = LIMITS.enrol_answer_bytes
    raw = client.post(ENROL_PATH, canonical_json(request), max_bytes=most)
    answer = decode(raw, EnrolAnswer, what="the fleet's answer", max_bytes=most)
    if not hmac.compare_digest(answer.nonce.encode(), nonce.encode()):
        raise UntrustedDocumentError(
            "the fleet's answer is to another request; somebody may replay it", code="wrong-nonce"
        )
    if (answer.status == Standing.ACCEPTED) != (answer.member is not None):
        raise MalformedDocumentError(
            f"the fleet's answer says {answer.status.value}, but "
            f"{'has' if answer.member else 'lacks'} what a member gets",
            code="bad-membership",
        )
    return answer


def _pending_words(answer: EnrolAnswer, key: PrivateKey, wish: Wish) -> str:
    usual = f"an operator must approve this device: edgepack device approve {wish.device}"
    return (
        f"waiting: {printable(answer.words) or usual}\n"
        f"the key of this device is {key.public.fingerprint}; compare it before approving"
    )


def _check_broker(broker: BrokerAddress, *, certified: bool) -> None:
    if not _HOST.match(broker.host):
        raise MalformedDocumentError(
            f"the fleet names a broker at {printable(broker.host)!r}, which is no host",
            code="bad-broker",
        )
    if not is_loopback(broker.host) and not (broker.tls and certified):
        lacks = "without TLS" if not broker.tls else "but gives this device no certificate for it"
        raise UntrustedDocumentError(
            f"the fleet names the broker {broker.host}, another machine, {lacks}; mend [enrolment] "
            "and [keys] authority in the fleet's configuration",
            code="insecure-broker",
        )
