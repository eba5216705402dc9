"""A process of the product, started for a test: its log, its requests, its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_waiting import SECONDS, eventually

from edgepack_cli.demo.clients import UnixConnection

_SERVING = re.compile(r"serving .*?(?:port |127\.0\.0\.1:|localhost:)(\d+)")


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Process:
    """``python -m module arguments``; what it says goes to a file."""

    def __init__(self, log: Path, module: str, *arguments: object, **environ: str) -> None:
        self.log = log
        self._command = [sys.executable, "-m", module, *map(str, arguments)]
        self._environ = os.environ | environ
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ
            )

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_said(self, words: str, *, times: int = 1) -> None:
        """Wait until its log holds ``words``; fails at once when it has ended without."""

        def there() -> bool:
            return self.said.count(words) >= times or self.process.poll() is not None

        eventually(there, lambda: f"{words!r} in:\n{self.said}")
        assert self.said.count(words) >= times, self.said

    def port(self) -> int:
        """The port that it says it serves on."""
        self.wait_said("serving ")
        found = eventually(lambda: _SERVING.findall(self.said), lambda: self.said)
        return int(found[-1])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code; negative when the signal killed it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it ends by itself, and return the exit code."""
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(log: Path, module: str, *arguments: object, **environ: str) -> Iterator[Process]:
    """A process that does not outlive the block."""
    process = Process(log, module, *arguments, **environ)
    try:
        yield process
    finally:
        process.kill()


def run_to_end(module: str, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a process that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=SECONDS, env=os.environ | environ,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def ask(where: int | Path, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """Send a request to a port of this machine, or to a Unix socket."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection = (
        http.client.HTTPConnection("127.0.0.1", where, timeout=SECONDS)
        if isinstance(where, int)
        else UnixConnection(where)
    )
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read(), dict(response.getheaders()))
