"""Ways to break the product on purpose, each of which the judge of kills must notice.

``kills.py --broken NAME`` breaks the forks that it kills, and nothing on the disk of this checkout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edgepack_runtime import process
from edgepack_runtime.activation.agent import SlotAgent
from edgepack_runtime.activation.effects import EffectRunner
from edgepack_runtime.activation.events import Collect, Verified
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.activation.layers import LayerFetch
from edgepack_runtime.activation.machine import step
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.storage.store import Store


@dataclass(frozen=True)
class Break:
    """What is broken, and the beginning of the names of the points whose kills must show it."""

    points: str
    apply: Callable[[], None]


def _in_place(*names: str) -> None:
    plain = DurableFS.atomic_write

    def write(self: DurableFS, path: Path, data: bytes) -> None:
        if path.name in names:
            path.write_bytes(data)
        else:
            plain(self, path, data)

    _set(DurableFS, "atomic_write", write)


def _into_the_store() -> None:
    _set(Store, "staging", Store.entry)
    _set(Store, "publish", lambda self, digest: self.fs.sync_tree(self.entry(digest)))


def _unverified() -> None:
    _into_the_store()
    _set(EffectRunner, "_verify", lambda _, effect: Verified(effect.install))
    plain = LayerFetch._bring

    def bring(self: LayerFetch, job: Any, held: Any) -> None:
        if not job.target.stat().st_size:
            plain(self, job, held)

    _set(LayerFetch, "_bring", bring)


def _act_then_write() -> None:
    plain = SlotAgent._advance

    def advance(self: SlotAgent, event: Any) -> None:
        before, taken = self._state, step(self._state, event)
        if Collect() in taken.effects:
            self._state = taken.state
            self._runner.perform(Collect())
            self._state = before
        plain(self, event)

    _set(SlotAgent, "_advance", advance)


def _attempts_not_written() -> None:
    plain = Journal.save

    def save(self: Journal, state: Any) -> Any:
        return replace(plain(self, replace(state, attempts=0)), attempts=state.attempts)

    _set(Journal, "save", save)


def _blocked_forgotten() -> None:
    plain = Journal.load

    def load(self: Journal) -> Any:
        found = plain(self)
        return replace_found(found, blocked=())

    _set(Journal, "load", load)


def _orders_forgotten() -> None:
    plain = Journal.load

    def load(self: Journal) -> Any:
        found = plain(self)
        return replace_found(found, obeyed=type(found.state.obeyed)())

    _set(Journal, "load", load)


def _previous_collected() -> None:
    def collect(self: EffectRunner) -> list[str]:
        state = self._around.state()
        return self._store.collect(state.keep - {state.previous.digest if state.previous else ""})

    _set(EffectRunner, "_collect", collect)


def _leftovers_kept() -> None:
    plain = DurableFS.remove_tree

    def remove(self: DurableFS, path: Path) -> None:
        if path.suffix != ".gone":
            plain(self, path)

    _set(DurableFS, "remove_tree", remove)


def _no_copy() -> None:
    def save(self: Journal, state: Any) -> Any:
        self._last = b""
        return plain(self, state)

    plain = Journal.save
    _set(Journal, "save", save)


def replace_found(found: Any, **changes: Any) -> Any:
    """What a journal held, changed."""
    return type(found)(replace(found.state, **changes), fresh=found.fresh)


def _set(owner: Any, name: str, value: object) -> None:
    setattr(owner, name, value)


BREAKS = {
    "record-in-place": Break("install/slot/write", lambda: _in_place("CURRENT", "CURRENT.prev")),
    "history-in-place": Break("install/slot/write", lambda: _in_place("history.json")),
    "session-in-place": Break("install/main/write", lambda: _in_place("session")),
    "into-the-store": Break("install/slot/write", _into_the_store),
    "unverified": Break("install/slot/write", _unverified),
    "act-then-write": Break("third-install/slot/unlink", _act_then_write),
    "attempts-not-written": Break("crash-loop/slot/", _attempts_not_written),
    "blocked-forgotten": Break("fallback/slot/", _blocked_forgotten),
    "orders-forgotten": Break("start/slot/rename", _orders_forgotten),
    "previous-collected": Break("install/slot/", _previous_collected),
    "leftovers-kept": Break("third-install/slot/", _leftovers_kept),
    "temporaries-kept": Break(
        "install/slot/rename", lambda: _set(DurableFS, "clean_temporaries", lambda *_, **__: None)
    ),
    "same-session": Break("start/main/", lambda: _set(process, "next_session", lambda *_, **__: 1)),
    "no-copy": Break("install/slot/rename", _no_copy),
}
"""Breaks by name. Fsyncs are not among them: a kill leaves what the kernel has in memory."""
