"""Taking secrets out of texts that leave the device: by their values, and by their forms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from edgepack_contract.errors import EdgepackError
from edgepack_contract.limits import LIMITS
from edgepack_contract.sealing import derived_secret
from edgepack_contract.small_files import read_small
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.membership.identity import load_identity

REDACTED = "REDACTED"
LEAST_CHARACTERS = 6
"""A shorter text is part of too many words to be taken out of all of them."""

_FORMS = (
    (re.compile(r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
     REDACTED),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,15}://)[^/\s\"'@]*@"), rf"\1{REDACTED}@"),
    (re.compile(r"(?i)(\bhttps?://[^\s\"'?\\]+)\?[^\s\"'\\]+"), rf"\1?{REDACTED}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9+/=._~-]{6,}"), rf"\1 {REDACTED}"),
    (re.compile(r"(?i)((?:password|passwd|secret|token|api[_-]?key)[\"']?\s*[=:]\s*[\"']?)"
                r"[^\s\"',;}]{3,}"), rf"\1{REDACTED}"),
)  # fmt: skip


def secrets_of(config: RuntimeConfig | None, environ: Mapping[str, str]) -> set[str]:
    """Every secret text of a device that can be read, and what follows from it.

    Args:
        config: Its configuration.
        environ: May hold proxies with passwords.
    """
    found = {part for value in environ.values() for part in _passwords(value)}
    if config is None:
        return found
    named = [config.identity.key, config.identity.mac_key, config.serve.tls_key]
    named += [config.serve.token_file, *(one.password_file for one in config.download.registries)]
    for path in named:
        found |= _lines(Path(path)) if path is not None else set()
    try:
        mac_key = load_identity(config).mac_key
    except (EdgepackError, OSError):
        return found
    return found | {mac_key.hex(), derived_secret(mac_key, "pull")}


def redact(text: str, secrets: Iterable[str]) -> str:
    """A text without secrets: their values as they are, in JSON, and in URLs; and their forms."""
    forms = {form for one in secrets for form in (one, json.dumps(one)[1:-1], quote(one, safe=""))}
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= LEAST_CHARACTERS:
            text = text.replace(form, REDACTED)
    for pattern, instead in _FORMS:
        text = pattern.sub(instead, text)
    return text


def _lines(path: Path) -> set[str]:
    try:
        raw = read_small(path, LIMITS.key_file_bytes)
    except OSError:
        # what cannot be read here cannot be told either
        return set()
    lines = (line.strip() for line in raw.decode("utf-8", "replace").splitlines())
    return {line for line in lines if line and not line.startswith("-----")}


def _passwords(value: str) -> list[str]:
    try:
        password = urlsplit(value).password if "://" in value else None
    except ValueError:
        return []
    return [password] if password else []
