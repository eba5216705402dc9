"""Latency and throughput of a device's endpoint beside FastAPI + onnxruntime, in one run.

    python bench/serving.py [--requests 3000] [--rounds 5]

A logistic regression over 30 features, JSON over loopback, everything that the daemon counts
switched on. Both servers run on core 0, the client on core 1; the rounds alternate; the figures are
medians over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skops.io
from sklearn.linear_model import LogisticRegression

from edgepack_contract.bundle import BundleFile
from edgepack_contract.layout import unpack
from edgepack_packager import Recipe, build

FEATURES = 30
CONNECTIONS = 8
SECONDS = 30.0


def main() -> None:
    """Build the model, run both servers, print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle, model = make_model(Path(folder))
        os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
        with server(edgepack_command(bundle)) as ours, server(fastapi_command(model)) as theirs:
            compare(ours, theirs, arguments.requests, arguments.rounds)


def make_model(folder: Path) -> tuple[Path, Path]:
    """A bundle, and the plain model inside it."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2000, FEATURES)).astype(np.float32)
    labels = (rows @ rng.normal(size=FEATURES) > 0).astype(np.int64)
    skops.io.dump(LogisticRegression().fit(rows, labels), folder / "bench.skops")
    np.savez(folder / "bench.npz", x=rows, y=labels)
    bundle = folder / "bench.edgepack"
    build(
        Recipe(
            model=folder / "bench.skops", name="bench", version="1.0.0", output=bundle,
            data=folder / "bench.npz", label="y",
        )
    )  # fmt: skip
    with BundleFile.open(bundle) as file:
        found = unpack(file, folder / "tree")
    return bundle, folder / "tree" / found.variants[0].name / "model.onnx"


def edgepack_command(bundle: Path) -> tuple[int, list[str]]:
    """The daemon, with all it counts."""
    port = free_port()
    return port, ["-m", "edgepack_cli", "run", "--bundle", str(bundle), "--port", str(port)]


def fastapi_command(model: Path) -> tuple[int, list[str]]:
    """The alternative."""
    port = free_port()
    return port, [str(Path(__file__).with_name("fastapi_server.py")), str(model), str(port)]


@contextlib.contextmanager
def server(command: tuple[int, list[str]]) -> Iterator[int]:
    """A server on core 0; its port, once it listens."""
    port, arguments = command
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),  # noqa: PLW1509 - before any thread
    )
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield port
    finally:
        process.terminate()
        process.wait()


def compare(ours: int, theirs: int, requests: int, rounds: int) -> None:
    """Alternate rounds and print medians and ratios."""
    latency: dict[int, list[float]] = {ours: [], theirs: []}
    rate: dict[int, list[float]] = {ours: [], theirs: []}
    for port in (ours, theirs):
        one_connection(port, requests // 5)
    for _ in range(rounds):
        for port in (ours, theirs):
            latency[port].append(statistics.median(one_connection(port, requests)))
            rate[port].append(throughput(port, requests))
    p50 = {port: statistics.median(times) * 1e6 for port, times in latency.items()}
    rps = {port: statistics.median(rates) for port, rates in rate.items()}
    print(f"{'':28}{'edgepack':>10}{'FastAPI':>10}{'ratio':>8}")
    print(f"{'p50, one connection, us':28}{p50[ours]:10.0f}{p50[theirs]:10.0f}"
          f"{p50[ours] / p50[theirs]:8.2f}")  # fmt: skip
    print(f"{'requests/s, 8 connections':28}{rps[ours]:10.0f}{rps[theirs]:10.0f}"
          f"{rps[ours] / rps[theirs]:8.2f}")  # fmt: skip


def one_connection(port: int, requests: int) -> list[float]:
    """Seconds of each request over one connection that is kept alive."""
    raw = request()
    times = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(requests):
            begun = time.perf_counter()
            connection.sendall(raw)
            answer(connection)
            times.append(time.perf_counter() - begun)
    return times


def throughput(port: int, requests: int) -> float:
    """Requests a second of eight connections together."""
    each = requests // CONNECTIONS
    threads = [
        threading.Thread(target=one_connection, args=(port, each)) for _ in range(CONNECTIONS)
    ]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return CONNECTIONS * each / (time.perf_counter() - begun)


def request() -> bytes:
    """One row, as JSON."""
    row = np.random.default_rng(2).normal(size=FEATURES).round(4).tolist()
    body = json.dumps({"instances": [row]}).encode()
    head = (
        "POST /v1/models/bench:predict HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer(connection: socket.socket) -> None:
    """Read one response and insist that it is a prediction."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += connection.recv(65536)
    head, _, body = raw.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    while len(body) < length:
        body += connection.recv(65536)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(body.decode())


def free_port() -> int:
    """A port on loopback that nothing uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
