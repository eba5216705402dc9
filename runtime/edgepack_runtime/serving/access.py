"""What a listener asks of its callers: TLS, a bearer token, both or neither.

Sources: RFC 6750 (bearer tokens), RFC 9325 (TLS 1.2 or newer).
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import Iterable
from pathlib import Path

from edgepack_contract.errors import ConfigError
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_contract.tls import server_context
from edgepack_runtime.config import ServeConfig
from edgepack_runtime.serving.asgi import CLOSE, Asgi, Receive, Scope, Send, error_response

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""One bit each, for whoever restarts containers; everything else needs the token."""

_CHALLENGE = (b"www-authenticate", b'Bearer realm="edgepack"')


class Guard:
    """The TLS certificate and the token of a listener; either may be missing.

    Args:
        config: Which files hold them.

    Raises:
        ConfigError: A file cannot be used (codes ``bad-tls`` and ``bad-token``).
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self.tls: ssl.SSLContext | None = None
        self._context: ssl.SSLContext | None = None
        self._token: bytes | None = None
        self.reload()

    @property
    def complete(self) -> bool:
        """Whether there is TLS and a token, as it takes off loopback."""
        return self.tls is not None and self._token is not None

    def before(self, app: Asgi) -> Asgi:
        """An application as callers of this listener reach it."""
        return app if self._token is None else TokenRequired(app, self)

    def reload(self, config: ServeConfig | None = None) -> None:
        """Read the files again; connections that stand keep what they agreed on.

        Args:
            config: Other files from now on, None for the same.

        Raises:
            ConfigError: A file cannot be used; then nothing changes.
        """
        config = config or self._config
        context, token = None, None
        if config.tls_certificate is not None and config.tls_key is not None:
            context = server_context(Path(config.tls_certificate), Path(config.tls_key))
        if config.token_file is not None:
            token = _digest(read_token(Path(config.token_file)).encode())
        self._config, self._context, self._token = config, context, token
        if self.tls is None and context is not None:
            # the listener keeps its first context for good, which sends each caller to the newest
            self.tls = context
            self.tls.sni_callback = self._use_newest

    def admits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request bears the token, exactly once."""
        if self._token is None:
            return True
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        return hmac.compare_digest(_digest(token.strip()), self._token) and (
            scheme.lower() == b"bearer"
        )

    def _use_newest(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        if self._context is not None:
            connection.context = self._context


class TokenRequired:
    """An application behind a guard's token."""

    def __init__(self, app: Asgi, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or answer 401."""
        if scope["path"] in OPEN_PATHS or self._guard.admits(scope["headers"]):
            await self._app(scope, receive, send)
            return
        words = "send the token of this device: Authorization: Bearer TOKEN"
        # the body of a stranger is not worth reading
        await error_response(401, words, _CHALLENGE, CLOSE).send(send)


def read_token(path: Path) -> str:
    """Read the token that callers must bear.

    Raises:
        ConfigError: The file cannot be read, or does not hold one word of ASCII (code
            ``bad-token``).
    """
    try:
        raw = read_small(path, LIMITS.key_file_bytes).strip()
    except OSError as error:
        raise ConfigError(
            f"cannot read the token {path}: {error.strerror}", code="bad-token"
        ) from error
    if not raw or len(raw) > LIMITS.key_file_bytes or any(not 0x21 <= byte <= 0x7E for byte in raw):
        raise ConfigError(f"{path} does not hold one word of ASCII characters", code="bad-token")
    return raw.decode("ascii")


def _digest(token: bytes) -> bytes:
    # digests are of one length, so that comparing them takes the same time for every token
    return hashlib.sha256(token).digest()
