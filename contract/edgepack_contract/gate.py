"""What the security gates of the daemon and of the service share; each has a table of its own.

Pure: :mod:`.gate_facts` looks at files. Off loopback means every address but loopback, also
``0.0.0.0`` inside a container.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from edgepack_contract.errors import ConfigError
from edgepack_contract.loopback import is_loopback

F = TypeVar("F")

REASON_VARIABLE = "EDGEPACK_ALLOW_INSECURE"
"""The environment variable that says why a process shall run although it is insecure."""

REMIND_SECONDS = 3600.0
"""How often what was waived is said in the log."""

OTHERS = 0o077
OTHERS_WRITE = 0o022
ROOTS_GROUP = 0o037
"""Group may read what root owns: how a container is given a secret as a mounted file."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason not to start.

    Attributes:
        key: The setting to change.
        words: What is wrong with it, and why that matters.
        fix: The setting or the command that mends it.
        waivable: Whether a stated reason may let the process start in spite of it.
    """

    key: str
    words: str
    fix: str
    waivable: bool

    def __str__(self) -> str:
        return f"{self.key}: {self.words}; {self.fix}"


@dataclass(frozen=True, slots=True)
class Waiver:
    """Somebody's reason to run in spite of violations; it is told for as long as it runs."""

    reason: str
    violations: tuple[Violation, ...]

    @property
    def settings(self) -> list[str]:
        """The settings that are insecure."""
        return sorted({violation.key for violation in self.violations})


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file or folder that a setting names.

    Attributes:
        path: Where.
        mode: Its permission bits, None when it is not there or cannot be looked at.
        of_root: Whether root owns it.
    """

    path: str
    mode: int | None = None
    of_root: bool = False

    def is_open(self, forbidden: int = OTHERS) -> bool:
        """Whether it has any of the forbidden permission bits."""
        return self.mode is not None and bool(self.mode & forbidden)

    def is_told(self) -> bool:
        """Whether others can read it as a secret; what root owns, its group may."""
        return self.is_open(ROOTS_GROUP if self.of_root else OTHERS)


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """The certificate and key of a listener.

    Attributes:
        problem: Why they cannot be used, None when they can.
        expires: When the certificate ends, seconds since 1970 UTC.
    """

    problem: str | None = None
    expires: float = math.inf


@dataclass(frozen=True)
class Rule(Generic[F]):
    """One row: the setting, when it is insecure, and templates of what to say then."""

    key: str
    broken: Callable[[F], bool]
    words: str
    fix: str
    waivable: bool = True

    def violation(self, told: Mapping[str, str], *, key: str | None = None) -> Violation:
        """What is said of facts that break this rule.

        Args:
            told: What the templates may name.
            key: The setting as the user wrote it, where that is another name.
        """
        words, fix = self.words.format_map(told), self.fix.format_map(told)
        return Violation(key or self.key, words, fix, self.waivable)


def admit(violations: Sequence[Violation], reason: str | None) -> Waiver | None:
    """Let a process start, or not.

    Args:
        violations: What its gate found.
        reason: Why it shall run although it is insecure; None or blank when nobody says so.

    Returns:
        None when it is secure, else what was waived.

    Raises:
        ConfigError: It is insecure, and no reason was given or none can waive it (code
            ``insecure``); the message has a line for each violation.
    """
    if not violations:
        return None
    stated = (reason or "").strip()
    if stated and all(violation.waivable for violation in violations):
        return Waiver(stated, tuple(violations))
    count = f"{len(violations)} setting{'s are' if len(violations) > 1 else ' is'} insecure"
    lines = "".join(f"\n  {violation}" for violation in violations)
    raise ConfigError(f"refusing to start, {count}:{lines}", code="insecure")


def day(seconds: float) -> str:
    """A day for people, of seconds since 1970 UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "an unknown day"


def is_local_url(url: str) -> bool:
    """Whether a URL leads to this machine only."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def is_safe_url(url: str) -> bool:
    """Whether a URL is https, or plain http that does not leave this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
