"""A slot on a real disk with real bundles, whose disk, models and clock a test can break."""

from __future__ import annotations

import errno
import functools
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import bundle_samples
import msgspec
from msgspec.structs import replace

from edgepack_contract.errors import EdgepackError
from edgepack_contract.hardware import Hardware
from edgepack_contract.instructions import Obeyed
from edgepack_contract.keyring import Keyring
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_contract.messages import Probation, Ref, SlotDesired
from edgepack_contract.states import Phase
from edgepack_runtime.activation.agent import SlotAgent
from edgepack_runtime.activation.guard import Counters
from edgepack_runtime.activation.history import History
from edgepack_runtime.activation.installer import Installer
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.activation.parts import Backoff, SlotParts, Timing
from edgepack_runtime.activation.state import RESTING
from edgepack_runtime.errors import TransientSourceError
from edgepack_runtime.inference.probe import ProbeResult
from edgepack_runtime.sources.archive import ArchiveSource
from edgepack_runtime.storage.fsio import DurableFS, Syscalls
from edgepack_runtime.storage.store import Store

HARDWARE = Hardware(
    os="linux", architecture="amd64", variant="v3", features=["x86-64-v3"], cores=2,
    memory_bytes=2**31, model="test", onnxruntime="1.31.0",
)  # fmt: skip
PROBATION = Probation(seconds=2.0, max_seconds=8.0, shadow_seconds=4.0)


class Crash(BaseException):
    """The process ends here: nothing after this runs, not even a handler of errors."""


@dataclass(frozen=True)
class Sample:
    """A bundle file and its identity."""

    path: Path
    digest: str
    version: str
    name: str

    def ref(self, *sources: str) -> Ref:
        return Ref(name=self.name, digest=self.digest, sources=list(sources or (str(self.path),)))


@functools.cache
def folder() -> Path:
    made = tempfile.TemporaryDirectory(prefix="edgepack-slot-world-")
    folder.__dict__["kept"] = made  # removed when the interpreter ends
    return Path(made.name)


@functools.cache
def bundle(
    version: str, *, name: str = "digits", security_version: int = 3, size: int = 100_000
) -> Sample:
    """A signed bundle; the model's bytes differ from version to version."""
    content = bundle_samples.one_variant(
        {
            "golden.safetensors": b"golden rows",
            "model.onnx": random.Random(version).randbytes(size),
            "reference.json": b"{}",
        },
        name=name,
        version=version,
        security_version=security_version,
    )
    path = folder() / f"{name}-{version}-{security_version}-{size}.edgepack"
    digest = write_bundle(path, content, signer=bundle_samples.PUBLISHER)
    return Sample(path, digest, version, name)


@functools.cache
def ranked(version: str, *, names: tuple[str, ...] = ("fast", "alt1", "fp32")) -> Sample:
    """A signed bundle of variants for the same machine, the best first; all but the graph is one.

    An older variant for fewer features is in it, too, which is no alternative to those.
    """
    files = {"golden.safetensors": b"golden rows", "reference.json": b"{}" * 40_000}
    plain = bundle_samples.describe(version=version)
    variants = [
        VariantContent(
            replace(plain, variant=name, features=["x86-64-v3"] if name != "generic" else []),
            {**files, "model.onnx": random.Random(f"{version} {name}").randbytes(30_000)},
        )
        for name in (*names, "generic")
    ]
    path = folder() / f"digits-{version}-{'-'.join(names)}.edgepack"
    digest = write_bundle(path, BundleContent(variants), signer=bundle_samples.PUBLISHER)
    return Sample(path, digest, version, "digits")


class TestCalls(Syscalls):
    """The real disk without waiting for the platter, failing on demand.

    ``fault`` is asked before each change with the name of the call; it may raise.
    """

    __test__ = False

    def __init__(self) -> None:
        self.count = 0
        self.full = False
        self.broken = False
        self.fault = None

    def _before(self, name):
        self.count += 1
        if self.fault:
            self.fault(name, self.count)
        if self.full and name in ("create", "open_append", "write", "mkdir"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")

    def create(self, path):
        self._before("create")
        return super().create(path)

    def open_append(self, path):
        self._before("open_append")
        return super().open_append(path)

    def write(self, fd, data):
        self._before("write")
        return super().write(fd, data)

    def truncate(self, fd, size):
        self._before("truncate")
        super().truncate(fd, size)

    def fsync(self, fd):
        self._before("fsync")

    def fdatasync(self, fd):
        self._before("fdatasync")

    def replace(self, source, target):
        self._before("replace")
        super().replace(source, target)

    def unlink(self, path):
        self._before("unlink")
        super().unlink(path)

    def mkdir(self, path):
        self._before("mkdir")
        super().mkdir(path)

    def rmdir(self, path):
        self._before("rmdir")
        super().rmdir(path)

    def fsync_dir(self, path):
        self._before("fsync_dir")


class RecordingHost:
    """Serves nothing, but says and checks what it would serve."""

    def __init__(self, temper: Temper) -> None:
        self.temper = temper
        self.serving: str | None = None
        self.shadow: str | None = None
        self.phases: list[str] = []
        self.reports = []
        self.events = []
        self.evidence = []
        self.served: list[str] = []

    def serve(self, folder, digest, *, keep_previous):
        assert (folder / "model.onnx").stat().st_size > 0
        assert (folder / "edgepack.json").is_file()
        assert folder.parent.name == digest.removeprefix("sha256:")
        left = self.temper.load_failures.get(digest, 0)
        if left:
            self.temper.load_failures[digest] = left - 1
            raise EdgepackError("the graph does not load", code="load-failed")
        self.shadow = self.serving if keep_previous and self.serving != digest else None
        self.serving = digest
        self.served.append(digest)

    def wants(self, digest):
        return digest not in self.temper.unwanted

    def make_room(self, folder):
        if self.serving is None or not self.temper.memory_short:
            return False
        self.serving = self.shadow = None
        return True

    def unserve(self):
        self.serving = self.shadow = None

    def counters(self):
        return self.temper.counters.get(self.serving, Counters(requests=1000))

    def throttled(self):
        return self.temper.throttled

    def run_golden(self):
        if self.serving in self.temper.golden_wrong:
            raise EdgepackError("3 of 32 golden rows differ", code="golden-mismatch")

    def end_shadow(self):
        self.shadow = None

    def report(self, reported):
        if self.temper.reports_fail:
            raise OSError("the broker is gone")
        self.reports.append(reported)
        if not self.phases or self.phases[-1] != reported.phase:
            self.phases.append(str(reported.phase))

    def event(self, kind, *, digest, code, words, evidence):
        if self.temper.events_fail:
            raise OSError("the spool is full")
        self.events.append((str(kind), digest, code))
        self.evidence.append(evidence)
        self.temper.told.append((str(kind), digest, code))


@dataclass
class Temper:
    """How models, sources and the machine behave, by digest; probes also by variant."""

    load_failures: dict[str, int] = field(default_factory=dict)
    probe_codes: dict[str, list[str]] = field(default_factory=dict)
    counters: dict[str | None, Counters] = field(default_factory=dict)
    golden_wrong: set[str] = field(default_factory=set)
    unwanted: set[str] = field(default_factory=set)
    source_failures: int = 0
    throttled: bool = False
    memory_short: bool = False
    reports_fail: bool = False
    events_fail: bool = False
    told: list[tuple[str, str | None, str]] = field(default_factory=list)


class World:
    """One device: its disk survives, its processes come and go."""

    def __init__(self, root: Path, keyring: Keyring | None = None) -> None:
        self.root = root
        self.temper = Temper()
        self.keyring = keyring or bundle_samples.keyring()
        self.calls = TestCalls()
        self.boot = 1
        self.now = 1000.0
        self.generation = 0
        self.reserve_bytes = 0
        self.factory: Path | None = None
        self.probed: list[str] = []
        self.agent: SlotAgent | None = None
        self.host = RecordingHost(self.temper)

    @property
    def state(self):
        return self.agent.state

    @property
    def store(self) -> Store:
        return self._store

    def boot_process(self, *, crashed_boot: bool = False, thread: bool = False) -> SlotAgent:
        """A new process of the daemon on the same disk."""
        self.boot += crashed_boot
        self.host = RecordingHost(self.temper)
        fs = DurableFS(self.calls)
        folder = self.root / "slots" / "main"
        self._store = Store(
            fs, folder, reserve_bytes=self.reserve_bytes, device=self.root / "slots"
        )
        installer = Installer(
            self._store,
            open_source=self._open_source,
            keyring=lambda: self.keyring,
            hardware=HARDWARE,
        )
        parts = SlotParts(
            journal=Journal(fs, folder),
            history=History(fs, folder),
            factory=self.factory,
            store=self._store,
            installer=installer,
            host=self.host,
            probe=self._probe,
        )
        timing = (
            Timing(watching=0.001, idle=30.0)
            if thread
            else Timing(
                backoff=Backoff(tries=4),
                clock=lambda: self.now,
                rng=random.Random(1),
                wait=self._pass_time,
            )
        )
        self.agent = SlotAgent("main", parts, boot_id=f"boot-{self.boot}", timing=timing)
        return self.agent

    def start(self, **how) -> SlotAgent:
        """Boot a process and let it take up what was under way."""
        agent = self.boot_process(**how)
        agent.open()
        agent.begin()
        return agent

    def stop(self) -> None:
        """End the process cleanly."""
        self.agent.stop()
        self.agent.finish()

    def wish(self, sample: Sample, *, repeat: bool = False, retry_blocked=(), epoch=1) -> None:
        """Hand over a desired document; each has a new generation unless it is repeated."""
        self.generation += not repeat
        ref = sample.ref(f"https://fleet.example/{sample.path.name}")
        desired = SlotDesired(active=ref, probation=PROBATION, retry_blocked=list(retry_blocked))
        self.agent.wish(desired, Obeyed(epoch=epoch, generation=self.generation))

    def settle(self, *, turns: int = 400) -> None:
        """Let the slot's thread go on until there is nothing left to do."""
        for _ in range(turns):
            if self.settled:
                return
            self.agent.turn()
        raise AssertionError(f"not settled after {turns} turns: {self.state}")

    @property
    def settled(self) -> bool:
        busy = self.agent._inbox.waiting or self.agent._outcomes
        return not busy and self.state.phase in RESTING and not self.state.pending

    def run_to(self, phase: Phase, *, turns: int = 100) -> None:
        """Let the slot's thread go on until it reaches ``phase``."""
        for _ in range(turns):
            if self.state.phase == phase:
                return
            self.agent.turn()
        raise AssertionError(f"never came to {phase}: {self.state}")

    def install(self, sample: Sample) -> None:
        """Wish for a bundle and see it succeed."""
        self.wish(sample)
        self.settle()
        assert (self.state.phase, self.host.serving) == (Phase.SUCCEEDED, sample.digest)

    def _pass_time(self, seconds: float) -> bool:
        if not self.agent._inbox.waiting:
            self.now += seconds
        return self.agent._inbox.waiting

    def _open_source(self, address):
        if self.temper.source_failures:
            self.temper.source_failures -= 1
            raise TransientSourceError("connection refused")
        # the address names a registry; what it has is in files here
        name = address.rsplit("/", 1)[-1]
        return ArchiveSource.open(folder() / name)

    def _probe(self, folder):
        variant = msgspec.json.decode((folder / "edgepack.json").read_bytes())["variant"]
        codes = self.temper.probe_codes.get(f"sha256:{folder.parent.name}", [])
        codes = self.temper.probe_codes.get(variant, codes)
        self.probed.append(variant)
        return ProbeResult(code=codes.pop(0) if codes else "", words="", p95_ms=1.5)
