"""A small client of the fleet's REST API, on the standard library: the CLI installs light."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgepack_cli.errors import CommandError, Exit, FleetRefusedError, FleetUnreachableError

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
TIMEOUT_SECONDS = 30.0
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token would go along to wherever it points."""

    def redirect_request(self, *_: object) -> None:
        """Leave the answer as it is: an error with its own status."""


@dataclass(frozen=True, slots=True)
class FleetClient:
    """Calls one fleet service with one token."""

    url: str
    token: str

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
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked in from_environment
            f"{self.url}/api/v1{path}", data=body, method=method
        )
        request.add_header("Authorization", f"Bearer {self.token}")
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            request.add_header(name, value)
        try:
            with self._opener().open(request, timeout=TIMEOUT_SECONDS) as answer:
                return _json(answer.read(MAX_RESPONSE_BYTES))
        except urllib.error.HTTPError as error:
            raise _refused(error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise FleetUnreachableError(
                f"the fleet service at {self.url} does not answer ({reason}); is it running, and "
                "is EDGEPACK_FLEET right?"
            ) from error
        except ValueError as error:
            raise FleetUnreachableError(
                f"what answers at {self.url} is not the fleet service: it sent no JSON; "
                "is EDGEPACK_FLEET right?"
            ) from error

    def _opener(self) -> urllib.request.OpenerDirector:
        # A proxy of the environment cannot reach this machine's own loopback.
        here = urllib.parse.urlsplit(self.url).hostname in LOOPBACK
        direct = [urllib.request.ProxyHandler({})] if here else []
        return urllib.request.build_opener(_StayHere, *direct)


def from_environment(environ: Mapping[str, str]) -> FleetClient:
    """The client for ``EDGEPACK_FLEET`` and ``EDGEPACK_TOKEN`` (or ``EDGEPACK_TOKEN_FILE``).

    Raises:
        CommandError: One of them is missing or malformed.
    """
    url = environ.get("EDGEPACK_FLEET", "http://127.0.0.1:8080").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise CommandError(
            f"EDGEPACK_FLEET is {url!r}, expected http://HOST:PORT or https://HOST",
            exit_code=Exit.USAGE,
        )
    token = environ.get("EDGEPACK_TOKEN") or _token_file(environ.get("EDGEPACK_TOKEN_FILE"))
    if not token:
        raise CommandError(
            "no token: set EDGEPACK_TOKEN, or EDGEPACK_TOKEN_FILE to a file that holds it; "
            "`edgepack fleet token` makes one",
            exit_code=Exit.USAGE,
        )
    return FleetClient(url, token)


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


def _refused(error: urllib.error.HTTPError) -> FleetRefusedError:
    try:
        problem = _json(error.read(MAX_RESPONSE_BYTES)) or {}
        words = problem.get("detail") or problem.get("title") or error.reason
    except (ValueError, AttributeError):
        words = error.reason
    return FleetRefusedError(f"the fleet refused: {words}", status=error.code)
