"""A registry on loopback that serves bundle files to whoever asks: nothing in it is trusted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from world_bundles import tiny_bundle

from edgepack_contract.bundle import BundleFile
from edgepack_contract.oci import INDEX_TYPE, Descriptor


class Registry:
    """The pull side of the OCI distribution API, one repository for each bundle file added."""

    def __init__(self) -> None:
        self._files: dict[str, BundleFile] = {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = registry.find(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Type", INDEX_TYPE)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def add(self, repository: str, path: Path) -> str:
        """Serve a bundle file, and return the address of its repository."""
        self._files[repository] = BundleFile.open(path)
        return f"http://127.0.0.1:{self._server.server_address[1]}/{repository}"

    def digest(self, repository: str) -> str:
        """The digest of the bundle that a repository has."""
        return self._files[repository].digest

    def find(self, path: str) -> bytes | None:
        """``/v2/REPOSITORY/manifests/REFERENCE`` or ``/v2/REPOSITORY/blobs/DIGEST``."""
        _, _, repository, kind, reference = path.split("/")
        file = self._files[repository]
        if kind == "manifests":
            return file.resolve(reference)
        size = file.blobs()[reference]
        with file.open_blob(Descriptor(media_type="", digest=reference, size=size)) as stream:
            return stream.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for file in self._files.values():
            file.close()


@contextmanager
def two_versions(folder: Path) -> Iterator[dict[str, tuple[str, str]]]:
    """Bundles 1.0.0 and 1.1.0 in a registry: version to digest and address, oldest first."""
    with Registry() as registry:
        found = {}
        for version in ("1.0.0", "1.1.0"):
            path = folder / f"{version}.edgepack"
            digest = tiny_bundle(path, version)
            found[version] = (digest, registry.add(f"tiny-{version.replace('.', '-')}", path))
        yield found
