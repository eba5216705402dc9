"""reference.json: strict, canonical, and with an id that depends on what columns mean only."""

from __future__ import annotations

import json

import msgspec
import pytest

from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.reference import (
    Calibration,
    FeatureReference,
    OutputHistogram,
    OutputReference,
    Reference,
    parse_reference,
    reference_id,
)

PLAIN = Calibration(sum_l=1.0, sum_l2=1.0, max_l=1.0)


def numeric(**changes: object) -> FeatureReference:
    item = FeatureReference(
        tensor="x", feature="age", index=0, kind="numeric", edges=[0.0, 0.5, 2.0],
        counts=[0, 5, 5, 0], null=1, mean=0.7, std=0.2, calibration=PLAIN,
    )  # fmt: skip
    return msgspec.structs.replace(item, **changes)


def reference(*inputs: FeatureReference, **changes: object) -> Reference:
    made = Reference(
        rows=11,
        ordered=False,
        inputs=list(inputs),
        outputs=OutputReference(
            classes=["no", "yes"],
            class_counts=[6, 5, 0],
            score=OutputHistogram(edges=[0.5, 0.9], counts=[0, 4, 7]),
        ),
    )
    return msgspec.structs.replace(made, **changes)


def test_it_reads_back_as_it_was_written():
    written = reference(
        numeric(), numeric(index=1, kind="category", edges=[], categories=["a", "b", "c"])
    )
    assert parse_reference(written.to_bytes()) == written


def test_the_id_ignores_counts_and_sees_edges():
    base = reference_id(reference(numeric()))
    assert reference_id(reference(numeric(counts=[1, 2, 3, 4], null=0), rows=99)) == base
    different = [
        reference(numeric(edges=[0.0, 0.6, 2.0])),
        reference(numeric(feature="size")),
        reference(numeric(mean=0.0)),
        reference(numeric(), outputs=OutputReference()),
        reference(),
    ]
    assert len({base, *map(reference_id, different)}) == 6


BROKEN = {
    "edges do not increase": {"edges": [0.0, 0.0, 2.0]},
    "too few counts": {"counts": [1, 2, 3]},
    "a numeric without edges": {"edges": [], "counts": [1]},
    "a numeric with categories": {"categories": [1.0]},
    "a category with edges": {"kind": "category"},
    "negative count": {"counts": [-1, 0, 0, 0]},
    "categories of two kinds": {
        "kind": "category", "edges": [], "categories": [1.0, "a", "b"]
    },
    "a category twice": {"kind": "category", "edges": [], "categories": [1.0, 1.0, 2.0]},
    "a spread below zero": {"std": -1.0},
    "an infinite edge": {"edges": [0.0, 0.5, 1e999]},
    "unknown field": {"colour": "red"},
}  # fmt: skip


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_feature_is_refused(change):
    tree = msgspec.to_builtins(reference(numeric()))
    tree["inputs"][0] |= change
    with pytest.raises(MalformedBundleError, match=r"reference\.json"):
        parse_reference(json.dumps(tree).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "edgepack-reference/2"},
        {"rows": 0},
        {"outputs": {"classes": ["a"], "class_counts": [1]}},
        {"outputs": {"score": {"edges": [0.5], "counts": [1]}}},
        {"outputs": {"score": {"edges": [0.5, 0.1], "counts": [1, 1, 1]}}},
    ],
)
def test_a_broken_reference_is_refused(change):
    tree = msgspec.to_builtins(reference(numeric())) | change
    with pytest.raises(MalformedBundleError, match=r"reference\.json"):
        parse_reference(json.dumps(tree).encode())


def test_two_features_cannot_share_a_column():
    tree = msgspec.to_builtins(reference(numeric()))
    tree["inputs"] *= 2
    with pytest.raises(MalformedBundleError, match="same column"):
        parse_reference(json.dumps(tree).encode())
