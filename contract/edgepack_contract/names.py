"""What names may look like: ids of tenants, devices, groups, slots and bundles, and versions."""

from __future__ import annotations

import re

from edgepack_contract.errors import ConfigError

_ID = re.compile(r"\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
# semver.org, with \Z instead of $ (which would accept a trailing line feed)
_SEMVER = re.compile(
    r"\A(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})"
    r"(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?\Z"
)

DEFAULT_TENANT = "default"


def is_id(text: str) -> bool:
    """Whether ``text`` is an id: 1 to 63 of ``a-z 0-9 -``, not starting or ending with ``-``."""
    return _ID.match(text) is not None


def check_id(text: str, *, what: str) -> str:
    """Return ``text`` when it is an id.

    Raises:
        ConfigError: It is not.
    """
    if not is_id(text):
        raise ConfigError(
            f"{what} {text[:80]!r} is not a valid id: use 1 to 63 of a-z, 0-9 and '-', "
            "starting and ending with a letter or digit",
            code="bad-id",
        )
    return text


def is_version(text: str) -> bool:
    """Whether ``text`` is a semantic version (no build metadata: an OCI tag has no ``+``)."""
    return len(text) <= 64 and _SEMVER.match(text) is not None


def check_version(text: str) -> str:
    """Return ``text`` when it is a semantic version.

    Raises:
        ConfigError: It is not.
    """
    if not is_version(text):
        raise ConfigError(
            f"version {text[:80]!r} is not a semantic version such as 1.4.0 or 2.0.0-rc.1",
            code="bad-version",
        )
    return text
