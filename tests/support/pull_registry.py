"""The pull half of a registry for one bundle file, which a test can make do something else."""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from edgepack_contract.bundle import BundleFile
from edgepack_contract.oci import describe


class PullRegistry(ThreadingHTTPServer):
    """What was asked of it, and how it answers.

    ``answer`` may answer in its stead and then returns true. Without ``ranges`` it ignores Range.
    With ``packed`` it has compressed copies, whose validators start with ``etag``.
    """

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.file = BundleFile.open(path)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[Handler], object] | None = None
        self.ranges = True
        self.packed = False
        self.etag = '"gzip-'

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/models/digits"

    def blobs_asked(self, digest: str) -> list[dict[str, str]]:
        """The headers of the requests for one blob."""
        return [headers for path, headers in self.asked if path.endswith(f"/blobs/{digest}")]

    def handle_error(self, *_: object) -> None:
        """A client that went away is what some of these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: PullRegistry

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.path, dict(self.headers)))
        if server.answer and server.answer(self):
            return
        raw = self.content()
        if raw is None:
            self.say(404, b"")
            return
        headers = {}
        if server.packed and "/blobs/" in self.path and "gzip" in self.headers["Accept-Encoding"]:
            packer = zlib.compressobj(wbits=31)
            raw = packer.compress(raw) + packer.flush()
            headers = {"Content-Encoding": "gzip", "ETag": f'{server.etag}{self.path[-8:]}"'}
        self.send_part(raw, headers)

    def send_part(self, raw: bytes, headers: dict[str, str]) -> None:
        """Send ``raw``, or the range of it that is asked for."""
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not span or not self.server.ranges or condition not in (None, headers.get("ETag")):
            self.say(200, raw, headers)
            return
        start = int(span[1])
        if start >= len(raw):
            self.say(416, b"", {"Content-Range": f"bytes */{len(raw)}"})
            return
        where = {"Content-Range": f"bytes {start}-{len(raw) - 1}/{len(raw)}"}
        self.say(206, raw[start:], headers | where)

    def content(self) -> bytes | None:
        kind, reference = self.path.split("/")[-2:]
        if kind == "manifests":
            return self.server.file.resolve(reference)
        size = self.server.file.blobs()[reference]
        blob = describe("application/octet-stream", reference, size)
        return self.server.file.open_blob(blob).read()

    def say(
        self,
        status: int,
        raw: bytes,
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def pull_registry(path: Path) -> Iterator[PullRegistry]:
    """A registry on loopback, gone after the block."""
    server = PullRegistry(path)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        server.file.close()
