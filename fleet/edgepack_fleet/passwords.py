"""Passwords of people: argon2id (RFC 9106, its second recommended parameters), few at once.

One check takes 64 MiB and some tens of milliseconds by design, so that only :data:`AT_ONCE` run at
a time, and the rest wait for their turn or are refused.
"""

from __future__ import annotations

import base64
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from edgepack_fleet.errors import InvalidRequestError, OperationError

MIN_LENGTH = 12
MAX_LENGTH = 1024
AT_ONCE = 2
TURN_SECONDS = 5.0


class Passwords:
    """Hashes and checks passwords.

    Args:
        hasher: The parameters; the library's default is RFC 9106's profile for little memory.
        turn_seconds: How long a check waits for its turn.
    """

    def __init__(
        self, hasher: PasswordHasher | None = None, turn_seconds: float = TURN_SECONDS
    ) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turn_seconds = turn_seconds
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._nobodys = _impossible(self._hasher)

    def hash(self, password: str) -> str:
        """The text to keep a password as.

        Raises:
            InvalidRequestError: It is too short or too long.
            OperationError: Too many passwords are being checked.
        """
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise InvalidRequestError(
                f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters", code="bad-password"
            )
        with self._turn():
            return self._hasher.hash(_normal(password))

    def is_right(self, kept: str | None, password: str) -> bool:
        """Whether ``password`` is the one that is kept; as slow to say so when none is.

        Raises:
            OperationError: Too many passwords are being checked.
        """
        if len(password) > MAX_LENGTH:
            return False
        with self._turn():
            try:
                self._hasher.verify(kept or self._nobodys, _normal(password))
            except (VerificationError, InvalidHashError):
                return False
            return kept is not None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(timeout=self._turn_seconds):
            raise OperationError("too many people log in at this moment; try again", code="busy")
        try:
            yield
        finally:
            self._turns.release()


def _normal(password: str) -> bytes:
    # RFC 8265, 4.2: keyboards differ in how they compose an accent
    return unicodedata.normalize("NFC", password).encode(errors="surrogatepass")


def _impossible(hasher: PasswordHasher) -> str:
    """A hash that no known password has, and that takes as long to check as any other."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")
        for size in (hasher.salt_len, hasher.hash_len)
    )
    costs = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2id$v=19${costs}${salt}${digest}"
