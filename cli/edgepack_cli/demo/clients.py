"""The demo's clients: one for each device, asking that device's own endpoint.

A client walks a permutation of all held-out rows without replacement, then another one, at a fixed
rate. It keeps a record of every request; labels stay here.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgepack_runtime.serving.sockets import short_path

TIMEOUT_SECONDS = 5.0


class Outcome(StrEnum):
    """What became of a request."""

    SERVED = "served"
    FAILED = "failed"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when (monotonic seconds), what became of it, and who said what."""

    at: float
    outcome: Outcome
    version: str = ""
    correct: bool = False
    words: str = ""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a device's Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_SECONDS)
        with short_path(self._path) as address:
            self.sock.connect(address)


class DeviceClient:
    """Asks one device, ``rate`` times a second, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        device: str,
        socket_path: Path,
        *,
        model: str,
        rows: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        rate: float,
        rng: random.Random,
    ) -> None:
        self.device = device
        self.answers: list[Answer] = []
        self._path = f"/v1/models/{model}:predict"
        self._bodies = [json.dumps({"instances": [row.tolist()]}).encode() for row in rows]
        self._labels = labels
        self._period = 1.0 / rate
        self._rng = rng
        self._connection = UnixConnection(socket_path)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"client-{device}", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def served_alike(self) -> int:
        """How many of the answers so far are of the version that answered last."""
        served = [one.version for one in self.answers if one.outcome == Outcome.SERVED]
        return sum(version == served[-1] for version in served) if served else 0

    def stop(self) -> None:
        """Finish the request in flight and stop."""
        self._stop.set()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        due = time.monotonic()
        for row in self._rows():
            due = max(due + self._period, time.monotonic() - self._period)
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            self.answers.append(self._ask(row))

    def _rows(self) -> Iterator[int]:
        order = list(range(len(self._bodies)))
        while True:
            self._rng.shuffle(order)
            yield from order

    def _ask(self, row: int) -> Answer:
        at = time.monotonic()
        try:
            status, raw = self._exchange(self._bodies[row])
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Answer(at, Outcome.DOWN, words=f"{type(error).__name__}: {error}")
        if status != 200:
            # A daemon that was killed says 503 until its model is loaded again.
            outcome = Outcome.DOWN if status == 503 else Outcome.FAILED
            return Answer(at, outcome, words=f"{status}: {raw[:200].decode(errors='replace')}")
        answer = json.loads(raw)
        label = answer["predictions"][0]["label"]
        correct = int(label) == int(self._labels[row])
        return Answer(at, Outcome.SERVED, answer["model_version"], correct)

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", self._path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.read()
