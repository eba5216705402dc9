"""Killing daemons at their system calls: the points, the runs, and the judge of what is left.

A :class:`Point` names one call: the n-th of its kind in one thread while a device goes through a
scenario. What can be named comes from dry runs under ``strace -c``; what is in
:data:`BOOKKEEPING` changes neither disk nor processes, and depends on the timing of the threads.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos_daemon import Child, Run, Script, warm_up
from chaos_judge import Memory, at_any_moment, at_rest, forgotten, remember, tree_digest
from chaos_scenarios import (
    BAD_VERSION,
    MODEL,
    SCENARIOS,
    Bundle,
    Scenario,
    copy_home,
    document,
    make_device,
)
from chaos_strace import Tracer, count_options, error_options, kill_options, parse_counts

from edgepack_contract.states import Phase

_WAITING = """
alarm clock_gettime clock_nanosleep epoll_create1 epoll_ctl epoll_wait futex nanosleep poll ppoll
pselect6 restart_syscall sched_yield select setitimer
"""
_MEMORY_AND_SIGNALS = """
arch_prctl brk exit exit_group kill madvise mprotect prctl rseq rt_sigaction rt_sigprocmask
rt_sigreturn rt_sigsuspend set_robust_list sigaltstack tgkill
"""
_QUESTIONS = """
dup dup2 getegid geteuid getgid getpeername getpid getppid getrandom getrusage getsockname
getsockopt gettid gettimeofday getuid ioctl lseek prlimit64 sched_getaffinity sysinfo times uname
"""
BOOKKEEPING = frozenset((_WAITING + _MEMORY_AND_SIGNALS + _QUESTIONS).split())
"""Waiting, memory of the process, and questions about itself."""

BREAKABLE = {
    "copy_file_range": ("ENOSPC", "EIO"),
    "fallocate": ("ENOSPC", "EIO"),
    "fdatasync": ("EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO", "ENOSPC"),
    "mkdir": ("ENOSPC", "EROFS"),
    "openat": ("EMFILE", "EIO", "ENOSPC"),
    "pwrite64": ("ENOSPC", "EIO"),
    "rename": ("EIO", "ENOSPC", "EROFS"),
    "rmdir": ("EIO", "EROFS"),
    "unlink": ("EIO", "EROFS"),
    "write": ("ENOSPC", "EIO", "EDQUOT", "EINTR"),
}
"""What a disk may answer to a call."""

MOST_STARTS = 8
"""A model that ends the process is given up after fewer, even when it is wished for once more."""

_DEADLY = -signal.SIGABRT


@dataclass(frozen=True, order=True)
class Point:
    """The ``when``-th ``call`` of one thread in a scenario; ``error`` instead of a kill."""

    scenario: str
    thread: str
    call: str
    when: int
    error: str = ""

    def __str__(self) -> str:
        name = f"{self.scenario}/{self.thread}/{self.call}/{self.when}"
        return f"{name}/{self.error}" if self.error else name

    @classmethod
    def parse(cls, text: str) -> Point:
        """The point of that name."""
        scenario, thread, call, when, *error = text.split("/")
        return cls(scenario, thread, call, int(when), *error)

    @property
    def group(self) -> tuple[str, str, str, str]:
        """All but the number."""
        return self.scenario, self.thread, self.call, self.error


@dataclass(frozen=True)
class Job:
    """Kills one after the other, each in a process on what the one before left."""

    points: tuple[Point, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.points))


@dataclass
class Outcome:
    """What came of a job: ``hits`` of its points were reached; ``wrong`` is what must not be."""

    job: str
    hits: int
    wrong: list[str] = field(default_factory=list)
    words: str = ""

    def line(self) -> str:
        """As the state file has it."""
        return json.dumps(asdict(self))


class Lab:
    """Templates of disks and how to go on from them.

    Args:
        root: A folder, best in memory; paths below it must be short enough for a Unix socket.
        bundles: What the registry has.
    """

    def __init__(self, root: Path, bundles: dict[str, Bundle]) -> None:
        self.root, self.bundles = root, bundles
        self.stored: dict[str, str] = {}

    def prepare(self, names: Collection[str]) -> None:
        """Make the disks that scenarios begin with. Imports what daemons import, on the way."""
        begins = {SCENARIOS[name].begins for name in names}
        make_device(self.root / "empty")
        first = self._template("empty", "runs-a", SCENARIOS["first-install"])
        warm_up(first.modules)
        self._template("runs-a", "runs-b", SCENARIOS["install"])
        if "runs-b" in begins:
            self._template("runs-b", "runs-c", SCENARIOS["third-install"])
        if "killed-a" in begins:
            self._template("runs-a", "killed-a", SCENARIOS["start"], die_at=Phase.SUCCEEDED)
        if "trial-b" in begins:
            self._template("runs-a", "trial-b", SCENARIOS["install"], die_at=Phase.PROBATION)
        if "dying-b" in begins:
            self._template("runs-a", "dying-b", SCENARIOS["crash-loop"], die_at=Phase.PROBATION)
        if "fallback" in names:
            self._template("runs-a", "trial-bad", SCENARIOS["fallback"], die_at=Phase.PROBATION)
        if "half-b" in begins:
            self._half()
        for store in self.root.glob(f"*-*/state/slots/{MODEL}/store"):
            for entry in store.iterdir():
                self.stored[entry.name] = tree_digest(entry)

    def points(self, name: str, thread: str) -> list[Point]:
        """Every call of one thread in a scenario that a kill may hit, found by a run of it."""
        home = self._home(f"dry-{name}-{thread}", SCENARIOS[name])
        run, text = self._traced(home, SCENARIOS[name], thread, count_options())
        assert not run.trouble, f"dry run of {name}: {run}"
        shutil.rmtree(home)
        return [
            Point(name, thread, call, when)
            for call, number in sorted(parse_counts(text).items())
            if call not in BOOKKEEPING
            for when in range(1, number + 1)
        ]

    def carry_out(self, job: Job, number: int) -> Outcome:
        """Kill as the job says, let the device recover, and judge."""
        scenario = SCENARIOS[job.points[0].scenario]
        home = self._home(f"w{number}", scenario)
        outcome = Outcome(str(job), 0)
        try:
            for point in job.points:
                self._strike(home, scenario, point, outcome)
            self._recover(home, scenario, outcome, after_error=bool(job.points[0].error))
            if outcome.wrong:
                log = home / "daemon.log"
                outcome.words = log.read_text(errors="replace")[-4000:]
        finally:
            shutil.rmtree(home, ignore_errors=True)
        return outcome

    def _strike(self, home: Path, scenario: Scenario, point: Point, outcome: Outcome) -> None:
        options = (
            error_options(point.call, point.when, point.error)
            if point.error
            else kill_options(point.call, point.when)
        )
        before = remember(home)
        run, text = self._traced(home, scenario, point.thread, options)
        hit = "(INJECTED)" in text if point.error else run.exit == -9 and not run.hung
        outcome.hits += hit
        if run.hung:
            outcome.wrong.append(f"{point}: the daemon hangs")
        elif not hit and run.exit not in (0, _DEADLY if scenario.deadly else 0):
            outcome.wrong.append(f"{point}: it ended with {run.exit} by itself")
        elif run.trouble:
            outcome.wrong.append(f"{point}: {run.trouble}")
        elif point.error and hit:
            outcome.wrong += self._serves(run, scenario, recovered=False)
        outcome.wrong += self._judged(home, before)

    def _judged(self, home: Path, before: Memory, released: Collection[str] = ()) -> Iterator[str]:
        """What is wrong with what a process left, whenever it ended."""
        yield from at_any_moment(home, self.stored)
        yield from forgotten(before, remember(home), released=released)

    def _recover(
        self, home: Path, scenario: Scenario, outcome: Outcome, *, after_error: bool
    ) -> None:
        wished, before = self.bundles[scenario.wish].digest, remember(home)
        run, session = self._live_on(home, scenario, again=after_error)
        outcome.wrong += self._serves(run, scenario, recovered=True)
        outcome.wrong += self._judged(home, before, [wished] if after_error else [])
        needed = {self.bundles[scenario.ends[1]].digest, self.bundles[scenario.before[0]].digest}
        outcome.wrong += at_rest(home, needed)
        if remember(home).session <= session:
            outcome.wrong.append("the session number did not grow")

    def _live_on(self, home: Path, scenario: Scenario, *, again: bool) -> tuple[Run, int]:
        """Start it until it ends on purpose; the last run, and the session number before that."""
        starts = 0
        while True:
            session = remember(home).session
            run = Child(self._script(home, scenario, again=again)).end()
            starts += 1
            if not scenario.deadly or run.exit != _DEADLY or starts == MOST_STARTS:
                return run, session

    def _serves(self, run: Run, scenario: Scenario, *, recovered: bool) -> Iterator[str]:
        """What is wrong with how a run went."""
        if run.hung or run.exit:
            # an error at a start may end it with words, and the service manager starts it again
            if recovered or run.hung:
                yield f"the daemon {'hangs' if run.hung else f'ended with {run.exit}'}"
            return
        may_be_none = scenario.may_be_empty
        yield from self._answered("first", run.first, scenario.before, may_be_none=may_be_none)
        if run.trouble:
            yield run.trouble
        phase, version = scenario.ends
        last = (version,) if recovered else (*scenario.before, version)
        none_yet = may_be_none and not recovered
        yield from self._answered("last", run.last, last, may_be_none=none_yet)
        if run.silent:
            yield f"{run.silent} requests got no answer"
        if not recovered:
            return
        if run.phase != phase:
            yield f"the slot rests in {run.phase} ({run.code}: {run.words}), not in {phase}"
        blocked = [self.bundles[scenario.wish].digest] if scenario.misbehaves else []
        if run.blocked != blocked:
            yield f"blocked is {run.blocked}"

    def _answered(
        self,
        what: str,
        answer: dict[str, Any] | None,
        versions: tuple[str, ...],
        *,
        may_be_none: bool,
    ) -> Iterator[str]:
        if answer is None:
            yield f"there was no {what} answer"
        elif answer["status"] != 200:
            if not (may_be_none and answer["status"] in (404, 503)):
                yield f"the {what} answer is {answer}"
        else:
            body = answer["body"]
            found = list(body["predictions"][0]["probabilities"].values())
            version = body["model_version"]
            right = self.bundles[version].answer
            close = all(
                math.isclose(*pair, rel_tol=1e-4) for pair in zip(found, right, strict=True)
            )
            if version not in versions or not close:
                yield f"the {what} answer is {body}, right is one of {versions}, which says {right}"

    def _template(
        self, begins: str, name: str, scenario: Scenario, die_at: Phase | None = None
    ) -> Run:
        copy_home(self.root / begins, self.root / name)
        script = self._script(self.root / name, scenario)
        script.die_at = die_at
        run = Child(script).end()
        expected = _DEADLY if die_at else 0
        said = (self.root / name / "daemon.log").read_text(errors="replace")
        fine = run.exit == expected and not run.trouble
        assert fine, f"template {name}: {run}\n{said}"
        return run

    def _half(self) -> None:
        """A device that was killed in the middle of writing the files of B's model."""
        scenario = SCENARIOS["install"]
        for when in range(8, 60, 2):
            home = self._home("half-b", scenario)
            self._traced(home, scenario, "slot", kill_options("write", when))
            staging = home / "state" / "slots" / MODEL / "staging"
            if any(path.is_file() for path in staging.glob("*/model/*")):
                return
        raise AssertionError("nothing was ever half-way")

    def _traced(
        self, home: Path, scenario: Scenario, thread: str, options: list[str]
    ) -> tuple[Run, str]:
        log = home / "strace.log"
        log.unlink(missing_ok=True)
        script = self._script(home, scenario)
        script.gate, script.must_settle = thread, False
        child = Child(script)
        tracer = None
        found = child.thread()
        if found is not None and child.wait_stopped():
            tracer = Tracer(found, options, log)
            child.go_on()
        run = child.end()
        return run, tracer.finish() if tracer else ""

    def _script(self, home: Path, scenario: Scenario, *, again: bool = False) -> Script:
        generation = scenario.generation + again
        desired = document(home, scenario, self.bundles, generation=generation, release=again)
        dies = Phase.PROBATION if scenario.deadly else None
        return Script(home, desired, generation, bad=scenario.wish == BAD_VERSION, die_at=dies)

    def _home(self, name: str, scenario: Scenario) -> Path:
        home = self.root / name
        shutil.rmtree(home, ignore_errors=True)
        copy_home(self.root / scenario.begins, home)
        return home


def in_order(points: Iterable[Point], rng: random.Random) -> list[Point]:
    """Shuffled, but so that every kind of call of every thread and scenario soon has its turn."""
    groups: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for point in sorted(points):
        groups[point.group].append(point)
    ranked = []
    for group in groups.values():
        rng.shuffle(group)
        ranked += [(rank, rng.random(), point) for rank, point in enumerate(group)]
    return [point for _, _, point in sorted(ranked)]


def with_errors(points: Iterable[Point]) -> list[Point]:
    """The same calls, failing in every way that they may instead of killing."""
    return [
        Point(point.scenario, point.thread, point.call, point.when, error)
        for point in points
        for error in BREAKABLE.get(point.call, ())
    ]
