"""What a killed daemon may leave on a disk, and what one that comes after must not have forgotten.

A device that is whole after it has recovered may have been lucky: its record has a copy, and what
is damaged is fetched again. Hence the disk is judged at the moment of death too.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from world_bundles import MODEL

from edgepack_runtime.activation import journal
from edgepack_runtime.activation.state import SlotState
from edgepack_runtime.storage.fsio import DurableFS


@dataclass(frozen=True)
class Memory:
    """What a device knows by its disk: the number of its last run, and its slot."""

    session: int
    slot: SlotState


def remember(home: Path) -> Memory:
    """What is on the disk of a device that does not run."""
    found = journal.Journal(DurableFS(), _slot(home)).peek()
    text = _session(home)
    return Memory(int(text) if text.isdigit() else 0, found.state)


def forgotten(before: Memory, after: Memory, *, released: Collection[str] = ()) -> Iterator[str]:
    """What was known before and is not any more; ``released`` may be tried again."""
    one, other = before.slot, after.slot
    for what, less in {
        "session number": after.session < before.session,
        "record": other.seq < one.seq,
        "number of the install": other.install < one.install,
        "document that was obeyed": _age(other) < _age(one),
    }.items():
        if less:
            yield f"the {what} is older than before"
    lost = set(one.blocked) - set(other.blocked) - set(released)
    if lost:
        yield f"no longer blocked: {sorted(lost)}"
    if any(other.floor(name) < floor for name, floor in one.floors.items()):
        yield f"a floor has sunk: {other.floors}, {one.floors}"


def at_any_moment(home: Path, stored: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a disk in the midst of anything.

    Args:
        home: The device's folder.
        stored: What :func:`tree_digest` says of each bundle, by the name of its entry.
    """
    yield from _record_damage(_slot(home))
    text = _session(home)
    if (home / "state" / "session").exists() and not text.isdigit():
        yield f"the session file holds {text!r}"
    for path in _json_files(home):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            yield f"{path.relative_to(home)} is damaged: {error}"
    kept = _kept(home)
    altered = [name for name in kept if kept[name] != stored.get(name)]
    if altered:
        yield f"the store has altered or half bundles: {altered}"
    state = remember(home).slot
    for bundle in (state.active, state.previous):
        if bundle and bundle.digest.removeprefix("sha256:") not in kept:
            yield f"{bundle.version} is what the device goes back to, and is not in the store"


def at_rest(home: Path, digests: Collection[str]) -> Iterator[str]:
    """What is wrong with the disk of a daemon that came to rest and ended.

    Args:
        home: The device's folder.
        digests: The bundles that it must have, and no others.
    """
    slot, kept = _slot(home), sorted(_kept(home))
    expected = sorted({one.removeprefix("sha256:") for one in digests})
    if kept != expected:
        yield f"the store has {kept}, not {expected}"
    left = [*(slot / "staging").iterdir(), *(home / "state").rglob("*.tmp-*")]
    if left:
        yield f"left behind: {left}"
    for name in ("CURRENT", "CURRENT.prev"):
        if not (slot / name).exists():
            yield f"there is no {name}"
    yield from _spool_damage(home / "state" / "spool.db")


def tree_digest(folder: Path) -> str:
    """One digest of a stored bundle: names and bytes; what the probe measured is no part of it."""
    found = hashlib.sha256()
    for path in sorted(path for part in ("model", "proof") for path in (folder / part).rglob("*")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0")
        if path.is_file():
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _slot(home: Path) -> Path:
    return home / "state" / "slots" / MODEL


def _session(home: Path) -> str:
    path = home / "state" / "session"
    return path.read_text(errors="replace") if path.exists() else ""


def _age(state: SlotState) -> tuple[int, int]:
    return state.obeyed.epoch, state.obeyed.generation


def _kept(home: Path) -> dict[str, str]:
    store = _slot(home) / "store"
    return {one.name: tree_digest(one) for one in store.iterdir()} if store.is_dir() else {}


def _json_files(home: Path) -> Iterator[Path]:
    """What is replaced as a whole whenever it is written."""
    for path in sorted((home / "state").rglob("*.json")):
        if "staging" not in path.parts:
            yield path


def _record_damage(slot: Path) -> Iterator[str]:
    numbers = []
    for name in ("CURRENT", "CURRENT.prev"):
        path = slot / name
        if not path.exists():
            continue
        body = journal._checked(path.read_bytes())
        if body is None:
            yield f"{name} is damaged"
        else:
            numbers.append(json.loads(body)["seq"])
    if len(numbers) == 2 and not 0 <= numbers[0] - numbers[1] <= 1:
        yield f"the record is of step {numbers[0]}, its copy of step {numbers[1]}"


def _spool_damage(path: Path) -> Iterator[str]:
    db = sqlite3.connect(path)
    try:
        ((found,),) = db.execute("PRAGMA quick_check").fetchall()
        if found != "ok":
            yield f"the spool: {found}"
    except sqlite3.Error as error:
        yield f"the spool: {error}"
    finally:
        db.close()
    if path.with_name(f"{path.name}.damaged").exists():
        yield "the spool was given up as damaged"
