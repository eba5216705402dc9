"""Where a model cannot be tried beside the one that answers, that one gives way, and comes back."""

from __future__ import annotations

import pytest
from slot_world import bundle, ranked

from edgepack_contract.errors import EdgepackError
from edgepack_contract.states import Phase

A, B, RANKED = bundle("1.0.0"), bundle("2.0.0"), ranked("2.0.0")


@pytest.fixture
def short(world):
    """A slot that runs A, on a machine without room for two."""
    world.start()
    world.install(A)
    world.temper.memory_short = True
    world.host.served.clear()
    world.probed.clear()
    return world


def seen_by_probes(world, monkeypatch):
    """What the host served at each probe."""
    seen, probe = [], world.agent._runner._probe

    def probing(folder):
        seen.append(world.host.serving)
        return probe(folder)

    monkeypatch.setattr(world.agent._runner, "_probe", probing)
    return seen


def test_it_is_tried_alone_and_the_good_model_answers_until_the_swap(short, monkeypatch):
    short.temper.probe_codes[B.digest] = ["probe-memory"]
    seen = seen_by_probes(short, monkeypatch)
    short.install(B)
    assert seen == [A.digest, None]
    assert short.host.served == [A.digest, B.digest]


def test_with_room_enough_nothing_gives_way(short, monkeypatch):
    short.temper.memory_short = False
    short.temper.probe_codes[B.digest] = ["probe-memory", "probe-memory"]
    seen = seen_by_probes(short, monkeypatch)
    short.install(B)
    assert seen == [A.digest] * 3


def test_what_is_too_large_even_alone_is_tried_once_and_the_good_model_is_back(short):
    short.temper.probe_codes[B.digest] = ["probe-memory"] * 9
    short.wish(B)
    short.settle()
    assert (short.state.phase, short.state.code) == (Phase.FAILED, "probe-memory")
    assert len(short.probed) == 2
    assert (short.host.serving, short.host.served) == (A.digest, [A.digest])


def test_an_alternative_is_tried_when_the_best_is_too_large_even_alone(short):
    short.temper.probe_codes["fast"] = ["probe-memory"] * 2
    short.install(RANKED)
    assert short.probed == ["fast", "fast", "alt1"]


def test_without_a_model_there_is_nothing_to_give_way(world):
    world.temper.memory_short = True
    world.temper.probe_codes[B.digest] = ["probe-memory"]
    world.start()
    world.install(B)
    assert len(world.probed) == 2


def test_a_model_that_does_not_come_back_ends_the_thread_and_comes_with_the_next_start(short):
    short.temper.probe_codes[B.digest] = ["probe-memory"] * 2
    short.temper.load_failures[A.digest] = 1
    short.wish(B)
    with pytest.raises(EdgepackError, match="does not come back") as raised:
        short.settle()
    assert raised.value.code == "lost-model"
    assert short.host.serving is None
    short.start()
    assert short.host.serving == A.digest
    short.settle()
    assert short.host.serving == B.digest
