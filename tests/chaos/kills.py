"""``make chaos``: kill real daemons at every system call, and see that each device recovers.

Ends when everything was tried, and goes on where it was when it was stopped: what was done for this
very code is in a state file. ``--errors`` lets the calls fail instead. ``--broken NAME`` breaks the
product on purpose until the judge says so, which must not take long.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "support"))
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}

from chaos_breaks import BREAKS  # noqa: E402
from chaos_daemon import GATES  # noqa: E402
from chaos_lab import Job, Lab, Outcome, Point, in_order, with_errors  # noqa: E402
from chaos_scenarios import SCENARIOS, make_bundles  # noqa: E402
from report_block import replace_block  # noqa: E402
from world_registry import Registry  # noqa: E402

MEMORY = Path("/dev/shm")
SECONDS = 3500.0
WRITES = frozenset(
    {"write", "pwrite64", "fsync", "fdatasync", "fallocate", "ftruncate", "copy_file_range"}
)
"""Calls that put bytes on a disk: their errors come first."""


def main() -> int:
    """Run until there are enough kills, and say what came of them."""
    options = _options()
    if options.broken:
        return _see_broken(options)
    state = options.state or _state_file(options)
    state.parent.mkdir(parents=True, exist_ok=True)
    with _lab(options.scenario or list(SCENARIOS)) as lab:
        began = time.monotonic()
        jobs = _jobs(_points(lab, options), options)
        done = _read(state)
        left = [job for job in jobs if str(job) not in done]
        print(
            f"{len(jobs)} jobs, {len(jobs) - len(left)} done before; state in {state}", flush=True
        )
        outcomes = list(done.values())
        seconds = 0.0
        try:
            _go(lab, left, options, state, outcomes)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", flush=True)
        seconds = time.monotonic() - began
    wanted = {str(job) for job in jobs}
    outcomes = [one for one in outcomes if one.job in wanted]
    table = _table(outcomes, errors=options.errors)
    print(table)
    print(f"{seconds:.0f} s in this run, {options.workers} at a time; ARGS used: {sys.argv[1:]}")
    if options.write:
        replace_block(options.write, "chaos-errors" if options.errors else "chaos", table)
    return _verdict(outcomes, options)


def _see_broken(options: argparse.Namespace) -> int:
    """Kill a product that is broken until that is noticed."""
    broken = BREAKS[options.broken]
    options.scenario, began, tried = [broken.points.partition("/")[0]], time.monotonic(), 0
    with _lab(options.scenario) as lab:
        jobs = [job for job in _jobs(_points(lab, options), options)
                if str(job).startswith(broken.points)]  # fmt: skip
        broken.apply()
        context = multiprocessing.get_context("fork")
        with context.Pool(options.workers, _be_worker, (lab,)) as pool:
            for outcome in pool.imap_unordered(_work, jobs):
                tried += outcome.hits
                if outcome.wrong:
                    print(f"{options.broken}: noticed after {tried} kills at {outcome.job}:"
                          f" {outcome.wrong}")  # fmt: skip
                    return 0
                if time.monotonic() - began > options.seconds:
                    break
    print(f"{options.broken}: NOT NOTICED by {tried} kills of {len(jobs)}")
    return 1


def _go(
    lab: Lab, jobs: list[Job], options: argparse.Namespace, state: Path, outcomes: list[Outcome]
) -> None:
    began, hits = time.monotonic(), sum(one.hits for one in outcomes)
    before, said = hits, began
    context = multiprocessing.get_context("fork")
    with context.Pool(options.workers, _be_worker, (lab,)) as pool, state.open("a") as file:
        for outcome in pool.imap_unordered(_work, jobs):
            file.write(outcome.line() + "\n")
            file.flush()
            outcomes.append(outcome)
            hits += outcome.hits
            now = time.monotonic()
            if outcome.wrong:
                print(f"WRONG {outcome.job}: {outcome.wrong}", flush=True)
            if now - said > 10:
                said, speed = now, 60 * (hits - before) / (now - began)
                print(f"{hits} hits, {speed:.0f} a minute", flush=True)
            if hits >= (options.kills or math.inf) or now - began > options.seconds:
                break


_LAB: list[Lab] = []


def _be_worker(lab: Lab) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _LAB[:] = [lab]


def _dry(run: tuple[str, str]) -> list[Point]:
    return _LAB[0].points(*run)


def _work(job: Job) -> Outcome:
    try:
        return _LAB[0].carry_out(job, os.getpid())
    except Exception as error:  # noqa: BLE001
        # whatever the judge stumbles over is a finding of its own
        return Outcome(str(job), 0, [f"the judge failed: {error!r}"], traceback.format_exc())


def _points(lab: Lab, options: argparse.Namespace) -> list[Point]:
    runs = itertools.product(options.scenario or list(SCENARIOS), GATES)
    with multiprocessing.get_context("fork").Pool(options.workers, _be_worker, (lab,)) as pool:
        return list(itertools.chain.from_iterable(pool.imap(_dry, list(runs))))


def _jobs(points: list[Point], options: argparse.Namespace) -> list[Job]:
    """One kill each at every point; then two kills each, until there are enough."""
    rng = random.Random(options.seed)
    if options.errors:
        mixed = in_order(with_errors(points), rng)
        return [Job((point,)) for point in sorted(mixed, key=lambda one: one.call not in WRITES)]
    jobs = [Job((point,)) for point in in_order(points, rng)]
    by_name: dict[str, list[Point]] = {}
    for point in points:
        by_name.setdefault(point.scenario, []).append(point)
    for _ in range(max(0, (options.kills or 0) - len(jobs))):
        one = rng.choice(points)
        jobs.append(Job((one, rng.choice(by_name[one.scenario]))))
    return jobs


@contextlib.contextmanager
def _lab(names: list[str]) -> Iterator[Lab]:
    """A lab with a registry in a process of its own, and all that lies in memory."""
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ec", dir=place) as made:
        root = Path(made)
        child, bundles = _registry(root)
        try:
            lab = Lab(root, bundles)
            lab.prepare(names)
            yield lab
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _registry(root: Path) -> tuple[int, dict]:
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.close(out)
            (root / "bundles").mkdir()
            # clients that are killed are no news
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with Registry() as registry:
                found = make_bundles(root / "bundles", registry)
                os.write(into, pickle.dumps(found))
                os.close(into)
                _until_orphaned()
        finally:
            os._exit(1)
    os.close(into)
    with os.fdopen(out, "rb") as stream:
        raw = stream.read()
    assert raw, "the registry did not start"
    return child, pickle.loads(raw)


def _until_orphaned() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1.0)


def _table(outcomes: list[Outcome], *, errors: bool) -> str:
    """Hits by scenario and call; a call of a second kill counts with its own name."""
    hits, wrong = Counter[tuple[str, str]](), 0
    for outcome in outcomes:
        wrong += bool(outcome.wrong)
        for text in outcome.job.split("+")[: outcome.hits]:
            point = Point.parse(text)
            hits[point.scenario, f"{point.call} {point.error}".strip()] += 1
    calls = sorted({call for _, call in hits}, key=lambda call: -sum(
        number for (_, one), number in hits.items() if one == call))  # fmt: skip
    names = [name for name in SCENARIOS if any(one == name for one, _ in hits)]
    what = "injected errors" if errors else "kills"
    rows = ["| system call | " + " | ".join(names) + " | all |"]
    rows.append("|---|" + "---:|" * (len(names) + 1))
    for call in calls:
        cells = [hits[name, call] for name in names]
        rows.append(f"| `{call}` | " + " | ".join(map(str, cells)) + f" | {sum(cells)} |")
    sums = [sum(hits[name, call] for call in calls) for name in names]
    rows.append("| all | " + " | ".join(map(str, sums)) + f" | {sum(sums)} |")
    missed = sum(1 for one in outcomes if one.hits == 0)
    said = f"{sum(sums)} {what} in {len(outcomes)} runs, {wrong} runs in which something was wrong."
    said += f" {missed} more calls of the dry runs did not come in their run."
    return said + "\n\n" + "\n".join(rows) + "\n"


def _verdict(outcomes: list[Outcome], options: argparse.Namespace) -> int:
    wrong = [one for one in outcomes if one.wrong]
    for one in wrong[: options.show]:
        print(f"\n{one.job}\n  " + "\n  ".join(one.wrong) + "\n" + one.words)
    return 1 if wrong or not outcomes else 0


def _read(state: Path) -> dict[str, Outcome]:
    """What was done before; a last line that was cut off is done again, as is what went wrong."""
    found = {}
    for line in state.read_text().splitlines() if state.exists() else ():
        with contextlib.suppress(ValueError):
            outcome = Outcome(**json.loads(line))
            found[outcome.job] = outcome
    return {name: one for name, one in found.items() if not one.wrong}


def _state_file(options: argparse.Namespace) -> Path:
    """A file for this seed and this code: what was shown of other code shows nothing of this."""
    code = hashlib.sha256(str((options.seed, options.scenario)).encode())
    for folder in ("contract", "runtime"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            code.update(path.read_bytes())
    for path in sorted((HERE.parent / "support").glob("chaos_*.py")):
        code.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "edgepack" / f"chaos-{code.hexdigest()[:16]}-{'e' * options.errors}.jsonl"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, help="stop after so many; else after all calls")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3 * (os.cpu_count() or 1),
                        help="daemons at a time; each waits most of its time")  # fmt: skip
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS))
    parser.add_argument("--broken", choices=list(BREAKS), help="break the product, see it noticed")
    parser.add_argument("--errors", action="store_true", help="let calls fail instead of killing")
    parser.add_argument("--show", type=int, default=5, help="logs of so many that went wrong")
    parser.add_argument("--state", type=Path, help="the state file")
    parser.add_argument("--write", type=Path, help="write the table into this document")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("strace is needed: apt-get install strace")
    return options


if __name__ == "__main__":
    sys.exit(main())
