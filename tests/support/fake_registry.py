"""A small OCI registry in this process that can misbehave in every way a test asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TOKEN = "t0ken"


@dataclass
class FakeRegistry:
    """What it has, what was asked of it, and how it misbehaves.

    ``busy`` answers so many requests with 503; ``cut`` ends each blob's answer after so many bytes;
    ``login`` is ``basic`` or ``bearer``; ``elsewhere`` sends uploads to another host; ``rewrites``
    says another digest for what is pushed; ``replaced`` are bytes sent instead, by digest or tag.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    busy: int = 0
    cut: int | None = None
    login: str = ""
    user: str = "carol:s3cret"
    elsewhere: str = ""
    rewrites: bool = False
    replaced: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    def count(self, method: str, part: str) -> int:
        return sum(1 for how, path in self.asked if how == method and part in path)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, state: FakeRegistry) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state
        self.upload = b""
        state.address = f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that goes away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    # head and body in one piece, or the other side's delayed acknowledgement costs 40 ms each time
    wbufsize = -1
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        state = self.server.state
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = state.cut if "/blobs/" in self.path and self.command == "GET" else None
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None and len(body) > cut:
            self.close_connection = True

    def let_in(self) -> bool:
        state = self.server.state
        given = self.headers.get("Authorization", "")
        basic = "Basic " + base64.b64encode(state.user.encode()).decode()
        if self.path.startswith("/token"):
            right = given == basic
            self.answer(
                200 if right else 401, json.dumps({"token": TOKEN}).encode() if right else b""
            )
            return False
        wanted = {"": given, "basic": basic, "bearer": f"Bearer {TOKEN}"}[state.login]
        if given == wanted:
            return True
        realm = f'Bearer realm="http://{state.address}/token",service="s",scope="x"'
        self.answer(401, WWW_Authenticate='Basic realm="r"' if state.login == "basic" else realm)
        return False

    def handle_any(self) -> None:
        state = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state.asked.append((self.command, self.path))
        if state.busy:
            state.busy -= 1
            self.answer(503)
        elif self.let_in():
            part, _, name = urlsplit(self.path).path.removeprefix("/v2/r/").partition("/")
            {"manifests": self.manifests, "blobs": self.blobs}[part](name, body)

    def manifests(self, name: str, body: bytes) -> None:
        state = self.server.state
        if self.command == "PUT":
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            state.manifests |= {name: body, digest: body}
            said = f"sha256:{'0' * 64}" if state.rewrites else digest
            self.answer(201, Docker_Content_Digest=said)
            return
        raw = state.replaced.get(name, state.manifests.get(name))
        self.answer(404 if raw is None else 200, raw or b"")

    def blobs(self, name: str, body: bytes) -> None:
        state = self.server.state
        if name.startswith("uploads/"):
            self.take(body)
            return
        raw = state.replaced.get(name, state.blobs.get(name))
        given = self.headers.get("Range")
        if raw is None:
            self.answer(404)
        elif given:
            state.ranges.append(given)
            start = int(given.removeprefix("bytes=").rstrip("-"))
            place = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
            self.answer(206, raw[start:], Content_Range=place)
        else:
            self.answer(200, raw)

    def take(self, body: bytes) -> None:
        place = f"{self.server.state.elsewhere}/v2/r/blobs/uploads/1"
        self.server.upload = b"" if self.command == "POST" else self.server.upload + body
        if self.command != "PUT":
            self.answer(202, Location=place)
            return
        (digest,) = parse_qs(urlsplit(self.path).query)["digest"]
        right = digest == f"sha256:{hashlib.sha256(self.server.upload).hexdigest()}"
        if right:
            self.server.state.blobs[digest] = self.server.upload
        self.answer(201 if right else 400)


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH"):
    setattr(_Handler, f"do_{_method}", _Handler.handle_any)


@contextmanager
def fake_registry() -> Iterator[FakeRegistry]:
    """A registry on loopback, gone after the block."""
    state = FakeRegistry()
    server = _Server(state)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
