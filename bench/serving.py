"""What a prediction costs in a device's daemon, beside what people write by hand, in one run.

    python bench/serving.py [--requests 2000] [--rounds 5] [--write docs/benchmarks.md]

The daemon is a real one with everything on: a fleet's document told it by MQTT what to run, its
windows go to a broker, both models have references. Beside it stand FastAPI + onnxruntime (same
file, session options, body, core, event loop), a bare httptools loop with a fixed answer, and
``session.run`` alone. Servers run on core 0, clients on core 1; rounds alternate; every figure is
the median over rounds.
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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from onnx import helper
from sklearn.linear_model import LogisticRegression

from edgepack_cli.demo.ports import free_port
from edgepack_contract.bundle import BundleFile
from edgepack_contract.description import TensorSpec
from edgepack_contract.layout import sign_bundle, unpack
from edgepack_contract.messages import Probation, Ref, SlotDesired
from edgepack_contract.topics import Kind
from edgepack_packager import Recipe, build
from edgepack_runtime import Model
from edgepack_runtime.inference.session import open_session
from edgepack_runtime.inference.variant import read_description

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from broker_process import Broker
from bundle_samples import PUBLISHER
from graph_bundles import graph, graph_bundle
from world_device import FLEET, Device, make_home
from world_process import ask
from world_registry import Registry
from world_waiting import eventually

FEATURES, CONNECTIONS, SECONDS = 30, 8, 30.0
IMAGE = (1, 3, 224, 224)
BEGIN, END = "<!-- begin: bench/serving -->", "<!-- end: bench/serving -->"
HERE = Path(__file__).parent
SERVER_CORE, CLIENT_CORE = {0}, {1 % (os.cpu_count() or 1)}

Place = int | Path


@dataclass
class Figures:
    """Medians over rounds by name: seconds of one request, and requests a second."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)

    def p50(self, name: str) -> float:
        """Microseconds."""
        return statistics.median(self.seconds[name]) * 1e6

    def rate(self, name: str) -> float:
        """Requests a second."""
        return statistics.median(self.rates[name])


def main() -> None:
    """Make models and a world, measure, and print or write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", type=Path, help="A page whose table is replaced.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, plain = make_model(folder)
        image = make_image_model(folder)
        table = measure(folder, {"bench": rows, "image": image}, plain, arguments)
    print(table)
    if arguments.write:
        before, rest = arguments.write.read_text().split(BEGIN)
        arguments.write.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")


def make_model(folder: Path) -> tuple[Path, Path]:
    """A signed bundle of a logistic regression, and the plain model inside it."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2000, FEATURES)).astype(np.float32)
    labels = (rows @ rng.normal(size=FEATURES) > 0).astype(np.int64)
    skops.io.dump(LogisticRegression().fit(rows, labels), folder / "bench.skops")
    np.savez(folder / "bench.npz", x=rows, y=labels)
    plain, signed = folder / "plain.edgepack", folder / "bench.edgepack"
    build(
        Recipe(
            model=folder / "bench.skops", name="bench", version="1.0.0", output=plain,
            data=folder / "bench.npz", label="y",
        )
    )  # fmt: skip
    sign_bundle(plain, signed, PUBLISHER)
    with BundleFile.open(signed) as file:
        found = unpack(file, folder / "tree")
    return signed, folder / "tree" / found.variants[0].name


def make_image_model(folder: Path) -> Path:
    """A signed bundle that takes an image and does little with it, so that transport shows."""
    inputs = [TensorSpec(name="image", dtype="float32", shape=["n", *IMAGE[1:]])]
    outputs = [TensorSpec(name="mean", dtype="float32", shape=["n", 3], kind="values")]
    node = helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0)
    rows = np.random.default_rng(3).normal(size=(2, *IMAGE[1:])).astype(np.float32)
    path = folder / "image.edgepack"
    graph_bundle(
        path, graph([node], inputs, outputs), {"image": rows}, signer=PUBLISHER, name="image",
        version="1.0.0", inputs=inputs, outputs=outputs, operators=["ai.onnx:ReduceMean"],
        opsets={"ai.onnx": 17, "ai.onnx.ml": 3}, ir_version=10,
    )  # fmt: skip
    return path


def measure(
    folder: Path, bundles: dict[str, Path], plain: Path, arguments: argparse.Namespace
) -> str:
    """Run all servers, and give the table."""
    os.sched_setaffinity(0, CLIENT_CORE)
    alone = {"bench": bundles["bench"]}
    with daemon(folder, bundles, "pi-1") as (device, first), asleep(folder, alone) as sleeper:
        port = device.process.port()
        with (
            server([HERE / "fastapi_server.py", plain / "model.onnx"]) as fastapi,
            server([HERE / "floor_server.py"]) as floor,
        ):
            places: dict[str, Place] = {
                "edgepack": port, "edgepack-unix": device.home / "serve.sock",
                "fastapi": fastapi, "floor": floor, "asleep": sleeper.process.port(),
            }  # fmt: skip
            found = compare(places, arguments.requests, arguments.rounds)
        found.seconds["image"] = [
            statistics.median(timed(port, image_request(), 200)) for _ in range(arguments.rounds)
        ]
        memory = [resident_mb(one.process.process.pid) for one in (sleeper, device)]
    in_process(found, plain, bundles["image"], arguments.rounds)
    return render(found, memory, first)


@contextlib.contextmanager
def asleep(folder: Path, bundles: dict[str, Path]) -> Iterator[Device]:
    """A device whose event loop always sleeps until the next request."""
    with daemon(folder, bundles, "pi-2", ("[serve]", "[serve]\nbusy_poll_us = 0")) as (device, _):
        yield device


@contextlib.contextmanager
def daemon(
    folder: Path, bundles: dict[str, Path], name: str, *settings: tuple[str, str]
) -> Iterator[tuple[Device, float]]:
    """A device that was told to run the bundles, and was then started anew.

    Args:
        folder: Where to put it.
        bundles: What it runs, by slot.
        name: Its name.
        settings: What to put in place of what in its configuration.

    Yields it, and the seconds from its start to its first prediction.
    """
    broker = Broker()
    home = folder / name
    make_home(home, name, broker.port)
    config = home / "device.toml"
    text = config.read_text()
    for before, after in (("_seconds = 0.5", "_seconds = 10.0"), *settings):
        text = text.replace(before, after)
    config.write_text(text)
    device = Device(home, name, broker.port, FLEET)
    with Registry() as registry:
        try:
            with on_core(SERVER_CORE):
                device.start()
            device.generation += 1
            wish = device.document(wishes(registry, bundles))
            device.send(device.topic(Kind.DESIRED), device.signed(wish), retain=True)
            ready(device, len(bundles))
            device.process.end()
            begun = time.perf_counter()
            with on_core(SERVER_CORE):
                device.process.start()
            eventually(lambda: predicts(home), lambda: device.process.said)
            yield device, time.perf_counter() - begun
        finally:
            device.close()
            broker.kill()


def wishes(registry: Registry, bundles: dict[str, Path]) -> dict[str, SlotDesired]:
    """What a fleet would tell the device."""
    at_once = Probation(seconds=0.0, max_seconds=1.0, shadow_seconds=0.0)
    told = {}
    for name, path in bundles.items():
        with BundleFile.open(path) as file:
            digest = file.digest
        ref = Ref(name=name, digest=digest, sources=[registry.add(name, path)])
        told[name] = SlotDesired(active=ref, probation=at_once)
    return told


def ready(device: Device, slots: int) -> None:
    """Wait until so many slots serve."""

    def there() -> bool:
        if device.process.process.poll() is not None:
            raise SystemExit(device.process.said)
        try:
            told = ask(device.home / "serve.sock", "GET", "/health").json["slots"]
        except OSError:
            return False
        return len(told) == slots and all(one["ready"] for one in told.values())

    eventually(there, lambda: f"slots that serve:\n{device.process.said}", seconds=SECONDS)


def predicts(home: Path) -> bool:
    """Whether the first model answers."""
    body = {"instances": [[0.0] * FEATURES]}
    try:
        return ask(home / "serve.sock", "POST", "/v1/models/bench:predict", body).status == 200
    except OSError:
        return False


@contextlib.contextmanager
def on_core(cores: set[int]) -> Iterator[None]:
    """Processes that are started within run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def server(arguments: list[Path]) -> Iterator[int]:
    """A server on core 0; its port, once it listens."""
    port = free_port()
    with on_core(SERVER_CORE):
        process = subprocess.Popen(
            [sys.executable, *arguments, str(port)], stderr=subprocess.DEVNULL
        )
    try:
        eventually(lambda: listens(port), f"{arguments[0].name} on {port}")
        yield port
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def compare(places: dict[str, Place], requests: int, rounds: int) -> Figures:
    """Alternate between the servers."""
    found = Figures()
    raw = row_request()
    for place in places.values():
        timed(place, raw, requests // 5)
    for _ in range(rounds):
        for name, place in places.items():
            median = statistics.median(timed(place, raw, requests))
            found.seconds.setdefault(name, []).append(median)
            if not isinstance(place, Path):
                found.rates.setdefault(name, []).append(throughput(place, raw, requests * 2))
    return found


def timed(place: Place, raw: bytes, requests: int) -> list[float]:
    """Seconds of each request over one connection that is kept alive."""
    family = socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET
    times = []
    with socket.socket(family) as connection:
        connection.connect(str(place) if isinstance(place, Path) else ("127.0.0.1", place))
        if family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(requests):
            begun = time.perf_counter()
            connection.sendall(raw)
            answer(connection)
            times.append(time.perf_counter() - begun)
    return times


def throughput(port: int, raw: bytes, requests: int) -> float:
    """Requests a second of eight connections together, from a process of their own."""
    command = [sys.executable, HERE / "load.py", str(port), str(CONNECTIONS), str(requests)]
    done = subprocess.run(command, input=raw, capture_output=True, check=True)
    return float(done.stdout)


def row_request() -> bytes:
    """One row, as JSON."""
    row = np.random.default_rng(2).normal(size=FEATURES).round(4).tolist()
    return post("/v1/models/bench:predict", json.dumps({"instances": [row]}).encode())


def image_request() -> bytes:
    """One image, as bytes behind a JSON header."""
    data = np.random.default_rng(4).normal(size=IMAGE).astype(np.float32).tobytes()
    tensor = {"name": "image", "shape": IMAGE, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return post("/v2/models/image/infer", head + data, length)


def post(path: str, body: bytes, more: str = "") -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def answer(connection: socket.socket) -> None:
    """Read one response and insist that it is a prediction."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += connection.recv(65536)
    head, _, body = raw.partition(b"\r\n\r\n")
    place = head.lower().index(b"content-length:") + 15
    length = int(head[place:].split(b"\r\n", 1)[0])
    while len(body) < length:
        body += connection.recv(65536)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(body.decode())


def in_process(found: Figures, plain: Path, image: Path, rounds: int) -> None:
    """``session.run`` alone, and :class:`edgepack_runtime.Model` around it."""
    os.sched_setaffinity(0, SERVER_CORE)
    row = np.random.default_rng(2).normal(size=(1, FEATURES)).astype(np.float32)
    picture = np.random.default_rng(4).normal(size=IMAGE).astype(np.float32)
    bare = open_session(plain / "model.onnx", read_description(plain).session)
    with Model(plain, unsigned=True) as model, Model(image, unsigned=True) as images:
        name = model.description.inputs[0].name
        calls: dict[str, tuple[Callable[[], Any], int]] = {
            "run": (lambda: bare.run({name: row}), 4000),
            "model": (lambda: model.predict(row), 4000),
            "image-run": (lambda: images._model.run({"image": picture}), 200),  # noqa: SLF001
        }
        append(found, model, row)
        for _ in range(rounds):
            for title, (call, count) in calls.items():
                begun = time.perf_counter()
                for _ in range(count):
                    call()
                seconds = (time.perf_counter() - begun) / count
                found.seconds.setdefault(title, []).append(seconds)


def append(found: Figures, model: Model, row: Any) -> None:
    """What counting a request costs: in the median, with its blocks, and at the longest."""
    feeds = {model.description.inputs[0].name: row}
    outputs, record, times = model.predict(row), model._counts.record, []  # noqa: SLF001
    for _ in range(40_000):
        begun = time.perf_counter()
        record(feeds, outputs, 1e-4)
        times.append(time.perf_counter() - begun)
    found.seconds["append"] = [statistics.median(times)]
    found.seconds["amortised"] = [statistics.fmean(times)]
    found.seconds["pause"] = [sorted(times)[-len(times) // 1000]]


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def render(found: Figures, memory: list[float], first: float) -> str:
    """The table, with the goals beside it."""
    p50, rate = found.p50, found.rate
    lines = [
        "| | edgepack | beside it | ratio | goal |",
        "|---|---|---|---|---|",
        _ratio("p50 of one row, JSON over loopback, us", p50("edgepack"), "FastAPI", p50("fastapi"),
               "0.35x"),
        _ratio("the same over a Unix socket, us", p50("edgepack-unix"), "FastAPI by TCP",
               p50("fastapi"), ""),
        _ratio("p50 by TCP with `busy_poll_us = 0`, us", p50("asleep"), "FastAPI", p50("fastapi"),
               ""),
        _ratio("p50 by TCP, us", p50("edgepack"), "bare httptools", p50("floor"), ""),
        _ratio("what is beyond bare httptools with `busy_poll_us = 0`, us",
               p50("asleep") - p50("floor"), "FastAPI", p50("fastapi") - p50("floor"), "0.35x"),
        _ratio(f"requests/s, {CONNECTIONS} connections, one core", rate("edgepack"), "FastAPI",
               rate("fastapi"), "3x"),
        _ratio("the same", rate("edgepack"), "bare httptools", rate("floor"), ""),
        _over("in process, one row, us", p50("model"), p50("run"), "5 us over"),
        _over("image of 1x3x224x224 as bytes over HTTP, ms", p50("image") / 1e3,
              p50("image-run") / 1e3, "0.5 ms over"),
        f"| counting a request, us | {p50('append'):.2f} | | | 1 |",
        f"| counting a request, with its blocks, us | {p50('amortised'):.2f} | | | 2 |",
        f"| longest pause for it (of 1000 requests), us | {p50('pause'):.0f} | | | 250 |",
        f"| memory of the daemon, MB | {memory[0]:.0f} | | | 90 |",
        f"| the same with the image's model, having answered images, MB | {memory[1]:.0f} | | | |",
        f"| start to first prediction, s | {first:.2f} | | | 1 |",
    ]  # fmt: skip
    return "\n".join(lines)


def _ratio(title: str, ours: float, who: str, theirs: float, goal: str) -> str:
    return f"| {title} | {ours:,.0f} | {who}: {theirs:,.0f} | {ours / theirs:.2f}x | {goal} |"


def _over(title: str, ours: float, bare: float, goal: str) -> str:
    return f"| {title} | {ours:.2f} | `session.run`: {bare:.2f} | {ours - bare:.2f} over | {goal} |"


if __name__ == "__main__":
    main()
