"""``make power-loss``: cut the power in every legal way, and see that each device recovers.

First every disk that a cut may leave, then disks that a second cut leaves while the device recovers
from the first, until there are enough. Then the check of the check: without any one class of calls
that make something durable, it must find a loss.
"""

from __future__ import annotations

import argparse
import functools
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from power_loss import key
from power_scenarios import (
    REDUNDANT,
    LostError,
    Recorded,
    cuts,
    kinds,
    loses,
    record_all,
    some_cuts,
    try_cut,
    try_damage,
)
from report_block import replace_block

from edgepack_contract import description, oci, signing, trusted

MEMORY = Path("/dev/shm")
STATES = 160_000
SECOND_CUTS = 64
"""Disks of a second cut tried for each of a first one, at most."""
MUTANT_DISKS = 60
DAMAGE_EACH = 4
"""Of so many disks one is also tried with a destroyed record, and with a destroyed copy of it."""


_RECORDED: list[Recorded] = []


@dataclass
class Found:
    """What one process found: different disks by scenario and number of cuts, and losses."""

    seen: dict[tuple[str, int], set[bytes]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def new(self, name: str, depth: int, state: bytes) -> bool:
        """Whether this disk was not seen before, in this scenario."""
        known = self.seen.setdefault((name, depth), set())
        if state in known or state in self.seen.get((name, 1), ()):
            return False
        known.add(state)
        return True


@dataclass(frozen=True)
class Share:
    """The part of the work of one process."""

    number: int
    of: int
    states: int
    part: int
    seed: int
    root: Path
    recorded: list[Recorded]


def main() -> int:
    """Try the disks, then the check itself."""
    logging.disable(logging.CRITICAL)
    options = _options()
    _share_proofs()
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ep", dir=place) as made:
        root = Path(made)
        recorded = record_all(root)
        began = time.monotonic()
        found = _try_disks(recorded, options, root)
        seconds = time.monotonic() - began
        print(f"{seconds:.0f} s for the disks; now without one class of calls each", flush=True)
        unknown, mutants = _try_mutants(recorded, options, root)
    text = _report(recorded, found, mutants)
    print(text)
    print(f"{seconds:.0f} s for the disks in {options.processes} processes, seed {options.seed}")
    if options.write:
        replace_block(options.write, "power-loss", text)
    for one in [*found.lost[:10], *unknown]:
        print(f"WRONG {one}")
    return 1 if found.lost or unknown else 0


def _share_proofs() -> None:
    """Read the same bytes of a bundle's documents once: a quarter of the time of a disk."""
    shared = functools.lru_cache(4096)(description.decode_bundle_json)
    for module in (description, oci, signing):
        module.decode_bundle_json = shared
    trusted.parse_description = functools.lru_cache(4096)(description.parse_description)


def _try_disks(recorded: list[Recorded], options: argparse.Namespace, root: Path) -> Found:
    number = options.processes
    shares = [
        Share(one, number, options.states // number, options.part, options.seed, root, recorded)
        for one in range(number)
    ]
    with multiprocessing.get_context("fork").Pool(number) as pool:
        parts = pool.map(explore, shares)
    whole = Found()
    for part in parts:
        whole.lost += part.lost
        for name, states in part.seen.items():
            whole.seen.setdefault(name, set()).update(states)
    return whole


def explore(share: Share) -> Found:
    """Try this process's share of the disks."""
    found, rng = Found(), random.Random(share.seed * 1000 + share.number)
    place = share.root / f"cut-{share.number}"
    firsts = list(_first_cuts(share))
    left = max(0, share.states - len(firsts))
    rng.shuffle(firsts)
    for number, (one, tree, promise) in enumerate(firsts):
        name = one.scenario.name
        found.new(name, 1, key(tree, promise))
        # evenly: what this one does not take is there for those that come
        second = min(SECOND_CUTS, -(-left // (len(firsts) - number)))
        try:
            log = try_cut(one.scenario, tree, promise, place, recording=second > 0)
            if number % DAMAGE_EACH == 0:
                try_damage(one.scenario, tree, promise, place)
            for other, later in some_cuts(tree, log, rng, second):
                owed = later if later is not None else promise
                if found.new(name, 2, key(other, owed)):
                    left -= 1
                    try_cut(one.scenario, other, owed, place)
        except LostError as error:
            found.lost.append(f"{name}: {error}")
        if share.number == 0 and number % 500 == 499:
            print(f"{number + 1} of {len(firsts)} first cuts in one process", flush=True)
    return found


def _first_cuts(share: Share) -> Iterator[tuple[Recorded, dict, object]]:
    for one in share.recorded:
        for number, (tree, promise) in enumerate(cuts(one.before, one.log, random.Random(1))):
            if number % (share.of * share.part) == share.number:
                yield one, tree, promise


def _try_mutants(
    recorded: list[Recorded], options: argparse.Namespace, root: Path
) -> tuple[list[str], dict[str, str]]:
    every = kinds(recorded)
    work = [(kind, root / f"mutant-{number}") for number, kind in enumerate(every)]
    for _, place in work:
        place.mkdir()
    for one in recorded:
        _RECORDED.append(one)
        # worked out once, for the processes that are forked next
        assert one.known
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        results = dict(zip(every, pool.starmap(_lose, work, chunksize=1), strict=True))
    unknown = [
        f"without {kind!r} nothing is lost, and nobody has said why it is made"
        for kind, lost in results.items()
        if not lost and kind not in REDUNDANT
    ]
    unknown += [
        f"{kind!r} is said to be redundant, but without it: {lost}"
        for kind, lost in results.items()
        if lost and kind in REDUNDANT
    ]
    return unknown, results


def _lose(kind: str, place: Path) -> str:
    return loses(_RECORDED, kind, place, most=MUTANT_DISKS)


def _report(recorded: list[Recorded], found: Found, mutants: dict[str, str]) -> str:
    rows = ["| scenario | calls | disks of one cut | of two cuts |", "|---|---:|---:|---:|"]
    sums = Counter[int]()
    for one in recorded:
        name = one.scenario.name
        single, double = (len(found.seen.get((name, depth), ())) for depth in (1, 2))
        sums.update({1: single, 2: double})
        rows.append(f"| {name} | {len(one.log)} | {single} | {double} |")
    rows.append(f"| all | {sum(len(one.log) for one in recorded)} | {sums[1]} | {sums[2]} |")
    needed = sum(map(bool, mutants.values()))
    said = f"{sums.total()} different disks, {len(found.lost)} of them with a loss."
    said += f" {len(mutants)} classes of calls left out one by one: {needed} times a loss was found"
    said += f", {len(mutants) - needed} are redundant on purpose."
    lines = ["| left out | found | or why it is there |", "|---|---|---|"]
    for kind, lost in mutants.items():
        why = "" if lost else REDUNDANT.get(kind, "**unknown**")
        lines.append(f"| `{kind}` | {lost.partition(':')[0]} | {why} |")
    return "\n".join([said, "", *rows, "", *lines]) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=STATES, help="different disks to try")
    parser.add_argument("--part", type=int, default=1, help="only every n-th disk of a first cut")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", type=Path, help="write the table into this document")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
