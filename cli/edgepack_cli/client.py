"""A small client of the fleet's REST API, on the standard library: the CLI installs light."""

from __future__ import annotations

import functools
import http.client
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from edgepack_cli.contexts import check_token, check_url, selected
from edgepack_cli.errors import CommandError, Exit, FleetRefusedError, FleetUnreachableError
from edgepack_contract.keyring import Keyring, open_keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.loopback import is_loopback
from edgepack_contract.tls import client_context, read_authorities, tls_trouble

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
TIMEOUT_SECONDS = 30.0
DEFAULT_URL = "http://127.0.0.1:8080"


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token would go along to wherever it points."""

    def redirect_request(self, *_: object) -> None:
        """Leave the answer as it is: an error with its own status."""


@dataclass(frozen=True, slots=True)
class FleetClient:
    """Calls one fleet service with one token.

    Attributes:
        url: ``http(s)://HOST[:PORT]``.
        token: What it is called with.
        authorities: Certificates of who vouches for it, in PEM form; none for the system's.
        owner: The pinned fingerprint of the fleet's owner, where one is known.
    """

    url: str
    token: str
    authorities: tuple[str, ...] = ()
    owner: str | None = None

    def get(self, path: str, **query: object) -> Any:
        """GET a JSON document."""
        asked = {key: value for key, value in query.items() if value is not None}
        suffix = f"?{urllib.parse.urlencode(asked)}" if asked else ""
        return self._call("GET", path + suffix)

    def items(self, path: str) -> list[Any]:
        """GET every page of a list."""
        items: list[Any] = []
        after: str | None = ""
        while after is not None:
            page = self.get(path, after=after or None)
            items += page["items"]
            after = page["next"]
        return items

    def post(self, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> Any:
        """POST a JSON document."""
        return self._call("POST", path, json.dumps(body).encode(), headers or {})

    def delete(self, path: str) -> None:
        """DELETE something."""
        self._call("DELETE", path)

    def put_bytes(self, path: str, body: bytes) -> Any:
        """PUT some bytes as they are."""
        return self._call("PUT", path, body, {"Content-Type": "application/octet-stream"})

    def put_file(self, path: str, file: Path) -> Any:
        """PUT a file as it is, streamed."""
        with file.open("rb") as stream:
            size = str(os.fstat(stream.fileno()).st_size)
            return self._call(
                "PUT",
                path,
                stream,
                {"Content-Type": "application/octet-stream", "Content-Length": size},
            )

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked by check_url
            f"{self.url}/api/v1{path}", data=body, method=method
        )
        request.add_header("Authorization", f"Bearer {self.token}")
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            request.add_header(name, value)
        try:
            opener = _opener(self.url, _context(self.authorities))
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return _json(answer.read(MAX_RESPONSE_BYTES))
        except urllib.error.HTTPError as error:
            raise _refused(error, self.url) from error
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(error, self.url) from error
        except ValueError as error:
            raise FleetUnreachableError(
                f"what answers at {self.url} is not the fleet service: it sent no JSON; "
                "is EDGEPACK_FLEET right?"
            ) from error


def from_environment(environ: Mapping[str, str]) -> FleetClient:
    """The client for the environment, or else for the context that is logged in to.

    ``EDGEPACK_FLEET``, ``EDGEPACK_TOKEN`` (or ``EDGEPACK_TOKEN_FILE``), ``EDGEPACK_CA`` (a file)
    and ``EDGEPACK_OWNER`` go before what `edgepack login` has stored. The token of a context goes
    to the address of that context only.

    Raises:
        CommandError: An address or a token is missing or malformed.
        DocumentError: ``EDGEPACK_OWNER`` has not signed the keyring of the service.
    """
    elsewhere = environ.get("EDGEPACK_FLEET")
    site = None if elsewhere else selected(environ)
    url = check_url(
        elsewhere or (site.url if site else DEFAULT_URL),
        what="EDGEPACK_FLEET" if elsewhere else "the context's address",
    )
    token = environ.get("EDGEPACK_TOKEN") or _token_file(environ.get("EDGEPACK_TOKEN_FILE"))
    token = token or (site.token if site else None)
    if not token:
        raise CommandError(
            "no token: log in with `edgepack login URL`, or set EDGEPACK_TOKEN, or "
            "EDGEPACK_TOKEN_FILE to a file that holds it; `edgepack fleet token` makes one",
            exit_code=Exit.USAGE,
        )
    owner = environ.get("EDGEPACK_OWNER") or (site.owner if site else None)
    authorities = _authorities(environ, url, site.authorities if site else ())
    return FleetClient(url, check_token(token), authorities, owner)


def fetch_keyring(url: str, owner: str) -> Keyring:
    """Fetch the keyring of a service and verify it by the pinned owner.

    Who answers need not be believed for that, because the keyring proves itself: it says which
    authorities vouch for the service, which is what makes everything after it believable.

    Raises:
        FleetUnreachableError: It does not answer.
        FleetRefusedError: It has no keyring to give.
        DocumentError: The owner did not sign it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(f"{url}/api/v1/keyring")  # noqa: S310 - see check_url
    try:
        with _opener(url, context).open(request, timeout=TIMEOUT_SECONDS) as answer:
            raw = answer.read(LIMITS.keyring_bytes + 1)
    except urllib.error.HTTPError as error:
        raise _refused(error, url) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(error, url) from error
    return open_keyring(raw, owner_fingerprint=owner)


def _authorities(environ: Mapping[str, str], url: str, stored: tuple[str, ...]) -> tuple[str, ...]:
    ca, owner = environ.get("EDGEPACK_CA"), environ.get("EDGEPACK_OWNER")
    if not url.startswith("https://"):
        return ()
    if ca:
        return tuple(read_authorities(Path(ca)))
    if owner:
        return tuple(fetch_keyring(url, owner).authorities)
    return stored


@functools.lru_cache(maxsize=8)
def _context(authorities: tuple[str, ...]) -> ssl.SSLContext:
    return client_context(authorities)


def _opener(url: str, context: ssl.SSLContext) -> urllib.request.OpenerDirector:
    # A proxy of the environment cannot reach this machine's own loopback.
    here = is_loopback(urllib.parse.urlsplit(url).hostname or "")
    direct = [urllib.request.ProxyHandler({})] if here else []
    secured = urllib.request.HTTPSHandler(context=context)
    return urllib.request.build_opener(_StayHere, secured, *direct)


def _token_file(path: str | None) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CommandError(
            f"cannot read EDGEPACK_TOKEN_FILE {path}: {error.strerror}", exit_code=Exit.USAGE
        ) from error


def _json(raw: bytes) -> Any:
    return json.loads(raw) if raw.strip() else None


def _refused(error: urllib.error.HTTPError, url: str) -> FleetRefusedError:
    try:
        problem = _json(error.read(MAX_RESPONSE_BYTES)) or {}
        words = problem.get("detail") or problem.get("title") or error.reason
    except (ValueError, AttributeError):
        words = error.reason
    if error.code == HTTPStatus.UNAUTHORIZED:
        words = f"{words}. Log in again: edgepack login {url}"
    return FleetRefusedError(f"the fleet refused: {words}", status=error.code)


def _unreachable(error: Exception, url: str) -> FleetUnreachableError:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLError):
        advice = (
            "if it has an authority of its own, log in with: edgepack login "
            f"{url} --owner FINGERPRINT (or --ca FILE), or set EDGEPACK_CA"
        )
        return FleetUnreachableError(
            f"the fleet service at {url} is not trusted: {tls_trouble(reason)}; {advice}",
            code="untrusted-service",
        )
    return FleetUnreachableError(
        f"the fleet service at {url} does not answer ({reason}); is it running, and is "
        "EDGEPACK_FLEET (or the context) right?"
    )
