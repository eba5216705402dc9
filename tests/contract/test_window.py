"""Windows merge exactly, refuse what contradicts itself, and read back as they were written."""

from __future__ import annotations

import json
import math
from functools import reduce

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.canonical import canonical_json
from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.latency import LatencyHistogram
from edgepack_contract.moments import Moments
from edgepack_contract.window import (
    DRIFT_VERDICTS,
    ERROR_KINDS,
    Differences,
    InputColumns,
    OutputColumns,
    Pairs,
    Window,
    WindowBody,
    display_quantiles,
    merge_bodies,
    merge_windows,
    mergeable,
    parse_window,
    place,
)

BUNDLE = "sha256:" + "a" * 64
OLD = "sha256:" + "b" * 64
COUNT = st.integers(0, 10**6)
WIDTHS = (4, 3)


@st.composite
def inputs(draw) -> InputColumns:
    if draw(st.booleans()):
        return InputColumns()
    some = [draw(st.integers(0, 1000)) for _ in WIDTHS]
    mean = [draw(st.floats(-5, 5)) if n else 0.0 for n in some]
    return InputColumns(
        n=some,
        null=[draw(COUNT) for _ in WIDTHS],
        counts=[draw(st.lists(COUNT, min_size=w, max_size=w)) for w in WIDTHS],
        mean=mean,
        m2=[draw(st.floats(0, 100)) if n else 0.0 for n in some],
        min=[value - 1 if n else None for n, value in zip(some, mean, strict=True)],
        max=[value + 1 if n else None for n, value in zip(some, mean, strict=True)],
    )


@st.composite
def pairs(draw) -> Pairs | None:
    if draw(st.booleans()):
        return None
    flips = draw(st.dictionaries(st.sampled_from(["0>1", "1>0", "3>31"]), COUNT))
    agree, other = draw(COUNT), draw(COUNT)
    n = agree + other + sum(flips.values())
    return Pairs(against=OLD, n=n, agree=agree, flips=flips, flips_other=other)


@st.composite
def differences(draw) -> Differences | None:
    values = draw(st.lists(st.floats(-100, 100), max_size=5))
    moments = reduce(Moments.merge, (Moments(1, one, 0.0, one, one) for one in values), Moments())
    return draw(st.sampled_from((None, Differences.of(OLD, moments))))


@st.composite
def bodies(draw, start: int = 0) -> WindowBody:
    latency = LatencyHistogram()
    for value in draw(st.lists(st.floats(1e-6, 10), max_size=5)):
        latency.add(value)
    errors = draw(st.dictionaries(st.sampled_from(ERROR_KINDS), COUNT))
    row = st.lists(COUNT, min_size=3, max_size=3)
    return WindowBody(
        slot="main",
        bundle=BUNDLE,
        reference="0123456789abcdef",
        start_ms=start,
        end_ms=start + draw(st.integers(0, 1000)),
        n=draw(COUNT),
        rows=10**6,
        sampled=draw(COUNT),
        errors=sum(errors.values()),
        over_budget=draw(COUNT),
        **display_quantiles(latency),
        drift=draw(st.sampled_from((None, *DRIFT_VERDICTS))),
        probation=draw(st.booleans()),
        throttled=draw(st.booleans()),
        errors_by_kind=errors,
        latency=latency.columns(),
        inputs=draw(inputs()),
        outputs=OutputColumns(classes=draw(row), score=draw(row)),
        pairs=draw(pairs()),
        role="shadow",
        differences=draw(differences()),
    )


def plain(body: WindowBody) -> object:
    """Everything but the moments, which are compared to 1e-9."""
    tree = msgspec.to_builtins(body)
    moments = ("mean", "m2")
    differences = tree["differences"] or {}
    return {
        **tree,
        "inputs": {k: v for k, v in tree["inputs"].items() if k not in moments},
        "differences": {k: v for k, v in differences.items() if k not in moments},
    }


def same(one: WindowBody, two: WindowBody) -> bool:
    moments = [
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
        for name in ("mean", "m2")
        for a, b in zip(getattr(one.inputs, name), getattr(two.inputs, name), strict=True)
    ]
    apart = [
        math.isclose(getattr(a, name), getattr(b, name), rel_tol=1e-9, abs_tol=1e-7)
        for a, b in [(one.differences, two.differences)]
        for name in ("mean", "m2")
        if a and b
    ]
    return plain(one) == plain(two) and all(moments) and all(apart)


@given(bodies(), bodies(1000), bodies(2000))
def test_merging_is_associative_and_commutative(a, b, c):
    assert same(merge_bodies(a, b), merge_bodies(b, a))
    assert same(merge_bodies(merge_bodies(a, b), c), merge_bodies(a, merge_bodies(b, c)))


@given(bodies(), bodies(1000))
def test_counts_add_exactly(a, b):
    whole = merge_bodies(a, b)
    for name in ("n", "rows", "sampled", "errors", "over_budget", "merged"):
        assert getattr(whole, name) == getattr(a, name) + getattr(b, name)
    assert sum(whole.latency.counts) == sum(a.latency.counts) + sum(b.latency.counts)
    assert sum(map(sum, whole.inputs.counts)) == sum(map(sum, a.inputs.counts + b.inputs.counts))


@given(bodies())
def test_a_window_reads_back_as_it_was_written(body):
    window = place(body, session=3, first=7, last=7)
    assert parse_window(canonical_json(window)) == window


def minimal(**changes: object) -> Window:
    body = WindowBody(slot="main", bundle=BUNDLE, reference=None, start_ms=1, end_ms=2)
    window = place(body, session=1, first=1, last=1)
    return msgspec.structs.replace(window, **changes)


def test_only_windows_that_follow_each_other_merge():
    first, second = minimal(), minimal(first=2, last=4)
    both = merge_windows(second, first)
    assert (both.first, both.last, both.merged) == (1, 4, 2)
    for stranger in (minimal(first=3, last=3), minimal(first=2, last=2, session=2), first):
        with pytest.raises(ValueError, match="follow each other"):
            merge_windows(first, stranger)


@pytest.mark.parametrize(
    "change",
    [
        {"slot": "other"},
        {"bundle": OLD},
        {"reference": "0" * 16},
        {"role": "split"},
        {"pairs": Pairs(against=BUNDLE)},
        {"differences": Differences(against=BUNDLE)},
    ],
)
def test_windows_that_count_other_things_do_not_merge(change):
    compared = {"pairs": Pairs(against=OLD), "differences": Differences(against=OLD)}
    one = minimal(**compared)
    two = minimal(**{**compared, "first": 2, "last": 2, **change})
    assert not mergeable(one, two)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_windows(one, two)


def test_the_scalars_for_display_are_flat_and_short():
    latency = LatencyHistogram()
    latency.add(0.0123456789)
    tree = json.loads(canonical_json(minimal(n=1, **display_quantiles(latency))))
    shown = {name: tree[name] for name in ("n", "p50_ms", "p95_ms", "p99_ms", "errors", "drift")}
    assert all(value is None or isinstance(value, (int, float)) for value in shown.values())
    assert len(str(tree["p50_ms"]).replace(".", "")) <= 6


BROKEN = {
    "unknown field": {"surprise": 1},
    "negative count": {"n": -1},
    "a float for a count": {"n": 1.5},
    "more than 2**53": {"n": 2**60},
    "ends before it starts": {"end_ms": 0},
    "errors do not add up": {"errors": 1},
    "unknown kind of error": {"errors": 1, "errors_by_kind": {"gremlins": 1}},
    "more sampled than rows": {"sampled": 1},
    "empty interval": {"first": 2},
    "session 0": {"session": 0},
    "no digest": {"bundle": "latest"},
    "a digest with a line feed": {"bundle": BUNDLE + "\n"},
    "a slot that is a path": {"slot": "../x"},
    "unknown verdict": {"drift": "maybe"},
    "ragged columns": {"inputs": {"n": [1]}},
    "pairs do not add up": {"pairs": {"against": OLD, "n": 2, "agree": 1}},
    "flip of an unknown class": {
        "pairs": {"against": OLD, "n": 1, "agree": 0, "flips": {"32>1": 1}}
    },
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_what_contradicts_itself_is_refused(change):
    tree = {**msgspec.to_builtins(minimal()), **change}
    with pytest.raises(MalformedDocumentError, match="telemetry window"):
        parse_window(json.dumps(tree).encode())
