"""Replacing a model again and again under load, in a real daemon that a fleet's documents tell to.

    python bench/swap.py [--swaps 200] [--megabytes 40] [--clients 2] [--pause-ms 2]

Each swap is a whole install: the document comes by MQTT, the bundle is verified and probed in a
child, loaded beside the one that answers, and watched. Clients in a process of their own ask all
the while. Printed are failed requests, answers by a version that was not live, the latency between
installs, during installs, and during their swaps alone, and how far memory drifted.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack_contract.description import SessionOptions
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_contract.messages import Probation, Reported
from edgepack_contract.states import Phase
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, run_rows
from edgepack_runtime.inference.session import open_session

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from broker_process import Broker
from bundle_samples import PUBLISHER
from world_bundles import MODEL, ROW, tiny_description
from world_device import FLEET, Device, make_home
from world_registry import Registry

VERSIONS = ("1.0.0", "2.0.0")
AT_ONCE = Probation(seconds=0.0, max_seconds=1.0, shadow_seconds=0.0)
GOALS = {"failed": 0, "drift_mb": 10.0, "p99_ms": 10.0}
SETTLED = 10
"""The first swaps fill caches and pools, and are not counted for the drift of memory."""

_VERSION = re.compile(rb"x-edgepack-version: (\S+)")
_LENGTH = re.compile(rb"content-length: (\d+)")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when, until when (seconds), the status (0: none), and who answered."""

    begun: float
    ended: float
    status: int
    version: str


@dataclass(slots=True)
class Swap:
    """One install: when it was asked for, loaded, switched and over; memory afterwards."""

    version: str
    asked: float
    loading: float = 0.0
    switched: float = 0.0
    ended: float = 0.0
    rss: int = 0


@dataclass(slots=True)
class Run:
    """All that happened."""

    swaps: list[Swap] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


def main() -> None:
    """Run a daemon under load, swap, and print the figures; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--pause-ms", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = measure(Path(folder), arguments)
    sys.exit(0 if report(run) else 1)


def measure(folder: Path, arguments: argparse.Namespace) -> Run:
    """Set a world up, swap in it, and take it down."""
    broker = Broker()
    with Registry() as registry:
        bundles = []
        for version in VERSIONS:
            digest = write_large(folder / f"{version}.edgepack", version, arguments.megabytes)
            path = folder / f"{version}.edgepack"
            bundles.append((digest, registry.add(f"large-{version[0]}", path)))
        make_home(folder / "pi-1", "pi-1", broker.port)
        device = Device(folder / "pi-1", "pi-1", broker.port, FLEET)
        try:
            device.start()
            install(device, bundles[0], Swap(VERSIONS[0], time.perf_counter()))
            return swap_under_load(device, bundles, arguments)
        finally:
            device.close()
            broker.kill()


def swap_under_load(
    device: Device, bundles: Sequence[tuple[str, str]], arguments: argparse.Namespace
) -> Run:
    """Alternate between the two bundles while clients ask."""
    context, run = mp.get_context("spawn"), Run()
    stop, queue = context.Event(), context.Queue()
    port, pause = device.process.port(), arguments.pause_ms / 1e3
    clients = [
        context.Process(target=ask_on, args=(port, pause, stop, queue))
        for _ in range(arguments.clients)
    ]
    for client in clients:
        client.start()
    time.sleep(2.0)
    for number in range(1, arguments.swaps + 1):
        swap = Swap(VERSIONS[number % 2], time.perf_counter())
        install(device, bundles[number % 2], swap)
        time.sleep(0.2)
        swap.rss = resident_bytes(device.process.process.pid)
        run.swaps.append(swap)
        if number % 10 == 0:
            print(f"{number} swaps, {swap.rss / 2**20:.0f} MB", file=sys.stderr, flush=True)
    stop.set()
    run.asked = [one for _ in clients for one in queue.get()]
    for client in clients:
        client.join()
    return run


def install(device: Device, bundle: tuple[str, str], swap: Swap) -> None:
    """Have a bundle installed and wait for its end, noting when its parts were reported."""
    device.wish(*bundle, probation=AT_ONCE)
    device.hear_reported(noting(bundle[0], swap))


def noting(digest: str, swap: Swap) -> Callable[[Reported], bool]:
    """Whether an install is over; until then, notes when it loads and when it has switched."""

    def over(said: Reported) -> bool:
        slot, now = said.slots.get(MODEL), time.perf_counter()
        if slot is None or slot.wanted != digest:
            return False
        if slot.phase in (Phase.FAILED, Phase.FELL_BACK, Phase.REJECTED, Phase.SAFE_MODE):
            raise RuntimeError(f"{slot.phase}: {slot.code}: {slot.words}")
        if slot.phase is Phase.ACTIVATING and not swap.loading:
            swap.loading = now
        if slot.running == digest and not swap.switched:
            swap.switched = now
        if slot.phase is Phase.SUCCEEDED:
            swap.ended = now
        return slot.phase is Phase.SUCCEEDED

    return over


def ask_on(port: int, pause: float, stop: Event, queue: mp.Queue[list[Asked]]) -> None:
    """Ask again and again over one connection, a pause between the requests."""
    body = b'{"instances": [[%s]]}' % ", ".join(map(str, ROW)).encode()
    head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}"
    request, seen = head.encode() + b"\r\n\r\n" + body, []
    connection = socket.create_connection(("127.0.0.1", port), timeout=30.0)
    while not stop.is_set():
        begun = time.perf_counter()
        try:
            connection.sendall(request)
            status, version = read_answer(connection)
        except OSError:
            status, version = 0, ""
            connection = socket.create_connection(("127.0.0.1", port), timeout=30.0)
        seen.append(Asked(begun, time.perf_counter(), status, version))
        time.sleep(pause)
    queue.put(seen)


def read_answer(connection: socket.socket) -> tuple[int, str]:
    """The status and the version of an answer, read to its end."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += received(connection)
    head, _, rest = raw.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    while length and len(rest) < int(length[1]):
        rest += received(connection)
    version = _VERSION.search(head)
    return int(head.split()[1]), version[1].decode() if version else ""


def received(connection: socket.socket) -> bytes:
    """What came; an end is an error here."""
    part = connection.recv(65_536)
    if not part:
        raise ConnectionError("the server closed the connection")
    return part


def report(run: Run) -> bool:
    """Print the figures; whether every goal is reached."""
    failed = [one for one in run.asked if one.status != 200]
    wrong = not_live(run)
    drift = drifted(run) / 2**20
    swapping = within(run.asked, [(one.loading, one.switched) for one in run.swaps])
    installing = within(run.asked, [(one.asked, one.ended) for one in run.swaps])
    between = list(set(run.asked) - set(installing))
    print(f"swaps {len(run.swaps)}, requests {len(run.asked)}")
    print(f"failed requests {len(failed)} (goal {GOALS['failed']})")
    print(f"answers by a version that was not live {len(wrong)} (goal 0)")
    print(f"memory after {run.swaps[-1].rss / 2**20:.0f} MB, drift {drift:+.1f} MB (goal < 10)")
    taken = statistics.median(one.switched - one.loading for one in run.swaps)
    print(f"load and switch {taken * 1e3:.0f} ms (median)")
    p99 = 0.0
    for name, part in (("between", between), ("install", installing), ("swap", swapping)):
        p99 = show(name, part)
    print(f"p99 during a swap {p99:.2f} ms (goal <= {GOALS['p99_ms']:g})")
    return not failed and not wrong and drift < GOALS["drift_mb"] and p99 <= GOALS["p99_ms"]


def show(name: str, part: Sequence[Asked]) -> float:
    """Print the latency of some requests; their p99 in milliseconds."""
    taken = np.array([one.ended - one.begun for one in part] or [0.0]) * 1e3
    p50, p99 = np.percentile(taken, [50, 99])
    print(f"{name:8} n {len(part):7} p50 {p50:6.2f} p99 {p99:6.2f} max {taken.max():6.2f} ms")
    return float(p99)


def within(asked: Sequence[Asked], spans: Sequence[tuple[float, float]]) -> list[Asked]:
    """The requests that were under way in one of the spans, which follow each other."""
    ends, begins = np.array([end for _, end in spans]), np.array([begin for begin, _ in spans])
    found = []
    for one in asked:
        place = int(np.searchsorted(ends, one.begun))
        if place < len(spans) and one.ended >= begins[place]:
            found.append(one)
    return found


def not_live(run: Run) -> list[Asked]:
    """The answers of a version that was not the one, nor about to be or about to go."""
    ends = np.array([one.ended for one in run.swaps])
    wrong = []
    for one in run.asked:
        place = int(np.searchsorted(ends, one.begun))
        live = {VERSIONS[place % 2]}
        if place < len(run.swaps) and one.ended >= run.swaps[place].asked:
            live = set(VERSIONS)
        if one.status == 200 and one.version not in live:
            wrong.append(one)
    return wrong


def drifted(run: Run) -> float:
    """Bytes that the process grew by: medians of the first and the last settled swaps."""
    sizes = [one.rss for one in run.swaps][min(SETTLED, len(run.swaps) // 2) :]
    return statistics.median(sizes[-SETTLED:]) - statistics.median(sizes[:SETTLED])


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def write_large(path: Path, version: str, megabytes: int) -> str:
    """A bundle whose weights are large and whose run is short; the digest."""
    rng = np.random.default_rng(list(version.encode()))
    graph = large_graph(rng, megabytes * 10**6 // 12)
    inputs = {"x": rng.normal(size=(8, 4)).astype(np.float32)}
    source = path.with_suffix(".onnx")
    source.write_bytes(graph)
    answers = run_rows(open_session(source, SessionOptions()), inputs, 8)
    files = {"model.onnx": graph, "golden.safetensors": golden_bytes(GoldenRows(inputs, answers))}
    operators = ["Abs", "Add", "Cast", "Gather", "Gemm", "Mod", "Mul", "ReduceSum", "Softmax"]
    described = tiny_description(version, operators=[f"ai.onnx:{name}" for name in operators])
    return write_bundle(path, BundleContent([VariantContent(described, files)]), signer=PUBLISHER)


def large_graph(rng: np.random.Generator, rows: int) -> bytes:
    """A linear classifier whose offsets come out of a large table, at a place that x says."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "scale"], ["scaled"]),
        helper.make_node("Abs", ["scaled"], ["far"]),
        helper.make_node("Cast", ["far"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mod", ["whole", "rows"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["offsets"]),
        helper.make_node("Gemm", ["x", "W"], ["linear"]),
        helper.make_node("Add", ["linear", "offsets"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
    ]
    constants = {
        "axes": np.array([1], np.int64),
        "scale": np.array(1e5, np.float32),
        "rows": np.array(rows, np.int64),
        "table": rng.normal(size=(rows, 3)).astype(np.float32),
        "W": rng.normal(size=(4, 3)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
