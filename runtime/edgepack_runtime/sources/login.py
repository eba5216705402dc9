"""How a device shows a registry who it is: Basic, or a token from where the registry says.

Sources: RFC 7235 and 7617, and the token authentication of the distribution project ("Token
Authentication Specification"). A token is asked for one repository and for pulling only; it and the
password never go to another host than the registry, and the password to none but the registry and
the host of its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult, urlencode, urlsplit

from edgepack_contract.canonical import parse_json
from edgepack_contract.errors import MalformedDocumentError, SourceError
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_runtime.sources.source import Credentials

MAX_TOKEN_CHARACTERS = 16 * 1024
DEFAULT_SECONDS = 60.0
"""How long a token is good when it does not say (the specification's number)."""

_SPARE_SECONDS = 5.0
_CHALLENGE = re.compile(r"\A\s*(basic|bearer)(?:\s+(.*))?\Z", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"([^"\\]*)"|([^",\s]+))\s*(?:,|\Z)')
_TOKEN = re.compile(r"\A[\x21-\x7e]+\Z")


class Fetch(Protocol):
    """Asks another place for a small document."""

    def __call__(self, url: SplitResult, authorization: str | None) -> bytes:
        """The body at ``url``, at most ``LIMITS.message_bytes`` of it."""
        ...


@dataclass(slots=True)
class Login:
    """Who asks one registry for one repository.

    Attributes:
        registry: The registry's address.
        repository: The repository.
        credentials: None to ask as nobody, who may be given tokens for what is public.
        eager: Whether a password is shown before it is asked for.
        clock: Monotonic seconds.
    """

    registry: SplitResult
    repository: str
    credentials: Credentials | None
    clock: Callable[[], float]
    eager: bool = False
    _shown: str | None = field(default=None, init=False, repr=False)
    _until: float = field(default=float("inf"), init=False)

    def header(self) -> str | None:
        """What to show now, None for nothing."""
        if self._shown is None and self.eager and self.credentials is not None:
            return self.credentials.header
        return self._shown if self.clock() < self._until else None

    def answer(self, challenge: str, fetch: Fetch) -> bool:
        """Get what the registry wants to see.

        Args:
            challenge: Its ``WWW-Authenticate`` header.
            fetch: Asks where the tokens are.

        Returns:
            Whether there is something to show that was not shown before.

        Raises:
            SourceError: Its tokens are not to be asked for where it says (code ``bad-realm``), or
                what came from there is none (code ``bad-token``).
        """
        before = self.header()
        found = _CHALLENGE.match(challenge[: LIMITS.request_header_bytes])
        if found is None:
            return False
        if found[1].lower() == "basic":
            self._shown = self.credentials.header if self.credentials else None
            self._until = float("inf")
        else:
            self._take_token(_parameters(found[2] or ""), fetch)
        return self.header() not in (None, before)

    def _take_token(self, parameters: dict[str, str], fetch: Fetch) -> None:
        realm = self._checked_realm(parameters.get("realm", ""))
        query = {"scope": f"repository:{self.repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        joined = "&".join(filter(None, [realm.query, urlencode(query)]))
        asked_at = self.clock()
        raw = fetch(
            realm._replace(query=joined), self.credentials.header if self.credentials else None
        )
        token, seconds = _token(raw, realm)
        self._shown = f"Bearer {token}"
        self._until = asked_at + max(_SPARE_SECONDS, seconds - _SPARE_SECONDS)

    def _checked_realm(self, text: str) -> SplitResult:
        try:
            realm = urlsplit(text[:2048])
            named = realm.hostname is not None and (realm.port is None or realm.port > 0)
        except ValueError:
            realm, named = self.registry, False
        if named and not realm.username and not realm.fragment and self._may_ask(realm):
            return realm
        raise SourceError(
            f"{self.registry.netloc} wants a token from {text[:120]!r}, which is not https on its "
            "own host or domain; nothing was sent there",
            code="bad-realm",
        )

    def _may_ask(self, realm: SplitResult) -> bool:
        there, here = realm.hostname or "", self.registry.hostname or ""
        if is_loopback(there) or is_loopback(here):
            return realm.scheme in ("http", "https") and is_loopback(there) and is_loopback(here)
        domain = here.partition(".")[2]
        kin = "." in domain and not here.replace(".", "").isdigit()
        near = there == here or (kin and (there == domain or there.endswith(f".{domain}")))
        return realm.scheme == "https" and near


def _parameters(text: str) -> dict[str, str]:
    found = _PARAMETER.finditer(text)
    return {one[1].lower(): one[2] if one[2] is not None else one[3] for one in found}


def _token(raw: bytes, realm: SplitResult) -> tuple[str, float]:
    try:
        said: Any = parse_json(raw, what="token", max_bytes=LIMITS.message_bytes)
    except MalformedDocumentError:
        said = None
    said = said if isinstance(said, dict) else {}
    token, seconds = said.get("token") or said.get("access_token"), said.get("expires_in")
    if not isinstance(token, str) or not _TOKEN.match(token) or len(token) > MAX_TOKEN_CHARACTERS:
        raise SourceError(f"{realm.netloc} gave no token", code="bad-token")
    whole = isinstance(seconds, int) and not isinstance(seconds, bool)
    return token, float(min(seconds, 86_400)) if whole else DEFAULT_SECONDS
