"""Certificates in files, made for a test: an authority, and what it issued for a listener."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.certificates import Authority
from edgepack_contract.keys import PrivateKey, write_private_key

DAY_MS = 86_400_000


@dataclass(frozen=True)
class TlsFiles:
    """A listener's certificate and key, and the authority that its callers trust."""

    certificate: Path
    key: Path
    authority: Path

    def trusting(self) -> ssl.SSLContext:
        """What a caller connects with."""
        return ssl.create_default_context(cafile=self.authority)


def make_tls(folder: Path, *hosts: str, ended_days: int = 0) -> TlsFiles:
    """A certificate for ``hosts`` (127.0.0.1 when none) that is good now, or ended days ago."""
    folder.mkdir(exist_ok=True)
    now_ms = int(time.time() * 1000)
    begun_ms = now_ms - (ended_days + 1) * DAY_MS
    authority = Authority.create(PrivateKey.generate(), name="test authority", now_ms=begun_ms)
    key = PrivateKey.generate()
    files = TlsFiles(folder / "tls.pem", folder / "tls.key", folder / "authority.pem")
    for path in (files.certificate, files.key, files.authority):
        path.unlink(missing_ok=True)
    days = 1 if ended_days else 30
    issued = authority.issue_server(
        key.public, hosts=hosts or ["127.0.0.1"], now_ms=begun_ms, days=days
    )
    files.certificate.write_bytes(issued.pem)
    files.authority.write_bytes(authority.pem)
    write_private_key(files.key, key)
    return files


def make_token(path: Path, token: str = "0123456789abcdef" * 4) -> str:
    """A file with a token, which is returned."""
    path.touch(mode=0o600)
    path.write_text(token + "\n", encoding="ascii")
    return token
