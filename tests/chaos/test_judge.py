"""The judge of kills, judged: each damage of a good disk, and a broken product under real kills."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from chaos_judge import Memory, at_any_moment, at_rest, forgotten, remember, tree_digest
from msgspec.structs import replace
from world_bundles import MODEL

from edgepack_contract.instructions import Obeyed
from edgepack_contract.states import Phase
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.activation.state import Installed, SlotState
from edgepack_runtime.storage.fsio import DurableFS

ACTIVE, PREVIOUS, OTHER = ("a" * 64, "b" * 64, "c" * 64)
KEPT = [f"sha256:{ACTIVE}", f"sha256:{PREVIOUS}"]
STATE = SlotState(
    phase=Phase.SUCCEEDED,
    active=Installed(digest=KEPT[0], name=MODEL, version="1.1.0", security_version=3),
    previous=Installed(digest=KEPT[1], name=MODEL, version="1.0.0", security_version=0),
    install=7,
    blocked=(f"sha256:{OTHER}",),
    floors={MODEL: 3},
    obeyed=Obeyed(epoch=1, generation=4),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    home = tmp_path_factory.mktemp("judge") / "home"
    slot, state = home / "state" / "slots" / MODEL, STATE
    journal = Journal(DurableFS(), slot)
    journal.load()
    for _ in range(3):
        state = journal.save(state)
    (slot / "staging").mkdir()
    for name in (ACTIVE, PREVIOUS):
        bundle(slot / "store" / name)
    (slot / "history.json").write_text("[]")
    (home / "state" / "session").write_text("41")
    sqlite3.connect(home / "state" / "spool.db").close()
    return home


@pytest.fixture
def home(template, tmp_path):
    """A device at rest, with nothing wrong."""
    return shutil.copytree(template, tmp_path / "home")


def bundle(folder):
    for path, data in {"model/model.onnx": b"weights", "proof/index": b"{}"}.items():
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(data)
    (folder / "tried.json").write_text(json.dumps({"p50": 1}))


def found(home, stored):
    return [*at_any_moment(home, stored), *at_rest(home, KEPT)]


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def damage_spool(state):
    (state / "spool.db").write_bytes(b"no database" * 100)


def remove_previous(slot):
    shutil.rmtree(slot / "store" / PREVIOUS)


def age_copy(slot):
    other = slot.parent.parent / "elsewhere"
    Journal(DurableFS(), other).load()
    Journal(DurableFS(), other).save(STATE)
    (other / "CURRENT").replace(slot / "CURRENT.prev")
    other.rmdir()


DAMAGES = {
    "half-record": (lambda slot: cut_in_half(slot / "CURRENT"), "CURRENT is damaged"),
    "half-copy": (lambda slot: cut_in_half(slot / "CURRENT.prev"), "CURRENT.prev is damaged"),
    "no-copy": (lambda slot: (slot / "CURRENT.prev").unlink(), "there is no CURRENT.prev"),
    "old-copy": (age_copy, "the record is of step 3, its copy of step 1"),
    "half-history": (lambda slot: cut_in_half(slot / "history.json"), "history.json is damaged"),
    "half-figures": (
        lambda slot: cut_in_half(slot / "store" / ACTIVE / "tried.json"), "tried.json is damaged",
    ),
    "half-model": (
        lambda slot: cut_in_half(slot / "store" / ACTIVE / "model" / "model.onnx"),
        "altered or half bundles",
    ),
    "half-bundle": (
        lambda slot: shutil.rmtree(slot / "store" / ACTIVE / "proof"), "altered or half bundles",
    ),
    "no-previous": (remove_previous, "1.0.0 is what the device goes back to, and is not"),
    "one-more": (lambda slot: bundle(slot / "store" / OTHER), "the store has"),
    "staged": (lambda slot: make(slot / "staging" / OTHER / "model"), "left behind"),
    "temporary": (lambda slot: make(slot.parent.parent / "trust.json.tmp-1-1"), "left behind"),
    "session": (lambda slot: make(slot.parent.parent / "session"), "the session file holds ''"),
    "spool": (lambda slot: damage_spool(slot.parent.parent), "the spool:"),
    "spool-aside": (lambda slot: make(slot.parent.parent / "spool.db.damaged"), "was given up"),
}  # fmt: skip


def test_a_good_disk_has_nothing_wrong(home):
    store = home / "state" / "slots" / MODEL / "store"
    assert not found(home, {entry.name: tree_digest(entry) for entry in store.iterdir()})
    assert remember(home) == Memory(41, replace(STATE, seq=3))


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_found(home, damage):
    slot = home / "state" / "slots" / MODEL
    stored = {entry.name: tree_digest(entry) for entry in (slot / "store").iterdir()}
    change, words = DAMAGES[damage]
    change(slot)
    assert any(words in one for one in found(home, stored)), found(home, stored)


def test_nothing_may_be_forgotten():
    before = Memory(5, replace(STATE, seq=9))
    assert not list(forgotten(before, Memory(6, replace(STATE, seq=10))))
    for changes, words in (
        ({"seq": 8}, "record"),
        ({"install": 6}, "install"),
        ({"obeyed": Obeyed(epoch=1, generation=3)}, "obeyed"),
        ({"blocked": ()}, "blocked"),
        ({"floors": {MODEL: 2}}, "floor"),
    ):
        after = Memory(6, replace(before.slot, **changes))
        (said,) = forgotten(before, after)
        assert words in said
    assert "session" in next(forgotten(before, Memory(4, before.slot)))
    later = Memory(6, replace(before.slot, blocked=()))
    assert not list(forgotten(before, later, released=STATE.blocked))


@pytest.mark.foreign("strace")
@pytest.mark.e2e
@pytest.mark.xdist_group("chaos")
@pytest.mark.parametrize("broken", ["attempts-not-written", "record-in-place"])
def test_a_broken_product_is_noticed(broken):
    tool = Path(__file__).parent / "kills.py"
    done = subprocess.run(
        [sys.executable, tool, "--workers", "4", "--seconds", "60", "--broken", broken],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{broken}: noticed" in done.stdout
