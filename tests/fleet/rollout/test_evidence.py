from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rollout_simulation import NEW, OLD, T0, Fleet

from edgepack_contract.window import OutputColumns, Pairs, WindowBody
from edgepack_fleet.rollout.evidence import BlockQuery, block_of, wanted_blocks


def window(**fields: Any) -> WindowBody:
    base = {"slot": "digits", "bundle": NEW, "reference": None, "start_ms": 0, "end_ms": 1000}
    return WindowBody(**base | fields)


def test_what_the_client_did_wrong_says_nothing_of_the_model():
    kinds = {
        "bad_request": 5,
        "shape": 2,
        "nonfinite_input": 1,
        "backend": 3,
        "nonfinite_output": 2,
    }
    block = block_of(window(n=40, rows=40, errors=13, errors_by_kind=kinds), start_ms=7)
    assert (block.start_ms, block.n, block.errors, block.nonfinite) == (7, 45, 5, 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60))
def test_the_previous_models_classes_come_out_of_the_flips(answers: list[tuple[int, int]]):
    old, new = [0] * 6, [0] * 6
    flips: dict[str, int] = {}
    for before, after in answers:
        old[before] += 1
        new[after] += 1
        if before != after:
            flips[f"{before}>{after}"] = flips.get(f"{before}>{after}", 0) + 1
    agree = len(answers) - sum(flips.values())
    pairs = Pairs(against=OLD, n=len(answers), agree=agree, flips=flips)
    size = len(answers)
    block = block_of(
        window(n=size, rows=size, sampled=size, outputs=OutputColumns(classes=new), pairs=pairs),
        start_ms=0,
    )
    assert list(block.previous_classes) == old
    assert (block.pairs_against, block.pairs_n, block.pairs_agree) == (OLD, size, agree)


def test_classes_of_only_some_rows_are_not_guessed():
    outputs = OutputColumns(classes=[5, 5])
    some = Pairs(against=OLD, n=8, agree=8)
    lost = Pairs(against=OLD, n=10, agree=9, flips_other=1)
    strange = Pairs(against=OLD, n=10, agree=9, flips={"0>7": 1})
    for pairs in (None, some, lost, strange):
        assert block_of(window(outputs=outputs, pairs=pairs), start_ms=0).previous_classes == ()


def test_drift_is_known_or_not():
    said = {None: None, "no-data": None, "ok": False, "shifted": False, "drift": True}
    assert {word: block_of(window(drift=word), start_ms=0).drifted for word in said} == said


def test_only_open_stages_want_blocks():
    fleet = Fleet(5).start()
    assert wanted_blocks(fleet.rollout) == []
    fleet.tick()
    (canary,) = fleet.rollout.stages[0].devices
    opened = fleet.rollout.stages[0].opened_ms
    assert wanted_blocks(fleet.rollout) == [
        BlockQuery(canary, NEW, opened),
        BlockQuery(canary, OLD, opened - 3_600_000),
    ]
    assert opened > T0
    fleet.run()
    assert wanted_blocks(fleet.rollout) == []


def test_a_device_that_ran_nothing_has_no_past_to_ask_for():
    fleet = Fleet(1, running=None, history_s=0).start()
    fleet.tick()
    assert [query.digest for query in wanted_blocks(fleet.rollout)] == [NEW]
