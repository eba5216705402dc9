"""``edgepack fleet certificate``: the service's own TLS certificate, from the fleet's authority."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepack_contract.certificates import Issued
from edgepack_contract.errors import ConfigError
from edgepack_contract.keyring import open_keyring
from edgepack_contract.keys import PublicKey
from edgepack_fleet.authority import named_authorities, require_issuer
from edgepack_fleet.broker_files import certify, is_due
from edgepack_fleet.config import FleetConfig
from edgepack_fleet.trust import read_keyring_file

CERTIFICATE, KEY = "service.pem", "service.key"


def make_certificate(
    config: FleetConfig, *, hosts: Sequence[str], out: Path, renew: bool, now_ms: int
) -> list[str]:
    """Write key and certificate; a key that is there stays. Say line by line what was done.

    The certificate is issued again when it is for other hosts, when the keyring does not name its
    authority any more, when two thirds of its life are over, or when ``renew`` asks for it.

    Raises:
        ConfigError: There is no authority, or the keyring does not name it, or the folder cannot be
            written.
        AuthorityError, SigningKeyError: A key or certificate cannot be used.
        UntrustedDocumentError, MalformedDocumentError: The keyring does not hold.
    """
    keyring = open_keyring(read_keyring_file(config.keys), owner_fingerprint=config.keys.owner)
    authority, believed = require_issuer(config.keys, keyring), named_authorities(keyring)

    def issue(key: PublicKey) -> Issued:
        return authority.issue_server(key, hosts=hosts, now_ms=now_ms)

    try:
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        done = certify(out / CERTIFICATE, out / KEY, issue, lambda certificate: (
            renew or is_due(certificate, believed, hosts, now_ms=now_ms)
        ))  # fmt: skip
    except OSError as error:
        raise ConfigError(f"cannot write into {out}: {error.strerror}", code="no-folder") from error
    return [f"{out / name}: {became}" for name, became in done]
