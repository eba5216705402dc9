"""What the security gates are told of files, and how what was waived is kept known."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import FileFacts, TlsFacts, Waiver
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_contract.tls import server_context

logger = logging.getLogger(__name__)


def file_facts(path: str) -> FileFacts:
    """What a file or folder is like. Raises nothing."""
    try:
        found = Path(path).stat()
    except OSError:
        return FileFacts(path)
    return FileFacts(path, stat.S_IMODE(found.st_mode), of_root=found.st_uid == 0)


def tls_facts(certificate: str | None, key: str | None) -> TlsFacts | None:
    """What a listener's certificate and key are like; None unless both are set. Raises nothing."""
    if certificate is None or key is None:
        return None
    # 3 MB, which a daemon without a certificate does without
    from cryptography import x509  # noqa: PLC0415

    try:
        server_context(Path(certificate), Path(key))
        raw = read_small(Path(certificate), LIMITS.key_file_bytes)
        expires = x509.load_pem_x509_certificate(raw).not_valid_after_utc.timestamp()
    except (ConfigError, OSError, ValueError) as error:
        return TlsFacts(problem=str(error))
    return TlsFacts(expires=expires)


def remind(waiver: Waiver) -> None:
    """Say in the log what was waived."""
    for violation in waiver.violations:
        logger.warning(
            "insecure (%s): %s", waiver.reason, violation,
            extra={"event": "insecure", "setting": violation.key},
        )  # fmt: skip
