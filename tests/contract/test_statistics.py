"""Rows are counted as a plain loop would count them, on the device as at build time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepack_contract.description import (
    Description,
    Golden,
    Platform,
    Provenance,
    TensorSpec,
)
from edgepack_contract.drift import independent
from edgepack_contract.reference import (
    MAX_FEATURES,
    FeatureReference,
    parse_reference,
    reference_id,
)
from edgepack_contract.statistics import (
    UNKNOWN_CLASS,
    ClassReader,
    EdgeCounter,
    InputCounter,
    OutputCounter,
    build_feature_reference,
    build_reference,
    confidence,
    empty_output_reference,
    long_run_calibration,
    quantile_edges,
)
from edgepack_contract.statistics.build import _codes
from edgepack_contract.statistics.inputs import numeric
from edgepack_contract.statistics.marks import ComparedMarks, SearchedMarks

DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint8", "bool"])


def columns_of(dtype: str, size: int = 200):
    elements = hnp.from_dtype(np.dtype(dtype))
    if dtype.startswith("float"):
        elements |= st.sampled_from([0.0, 1.0, -1.0, 0.5])
    return hnp.arrays(dtype, st.integers(1, size), elements=elements)


def by_hand(item: FeatureReference, column: np.ndarray) -> tuple[list[int], int]:
    """The definition, one value at a time, in plain Python."""
    counts, null = [0] * item.columns, 0
    for value in column.astype(np.float64).tolist():
        if math.isnan(value):
            null += 1
        elif item.kind == "category":
            known = value in item.categories
            counts[item.categories.index(value) if known else -1] += 1
        else:
            counts[sum(value >= edge for edge in item.edges)] += 1
    return counts, null


@given(DTYPES.flatmap(lambda dtype: st.tuples(columns_of(dtype), columns_of(dtype))))
def test_counting_follows_the_definition(samples):
    old, new = samples
    item = build_feature_reference(old, tensor="x", feature="f")
    assert (item.counts, item.null) == by_hand(item, old)
    counter = InputCounter([item])
    columns = counter.columns(counter.count({"x": new[:, None]}))
    assert (columns.counts[0], columns.null[0]) == by_hand(item, new)
    assert sum(columns.counts[0]) + columns.null[0] == len(new)


@given(DTYPES.flatmap(lambda dtype: st.tuples(columns_of(dtype), columns_of(dtype))))
def test_both_ways_of_counting_follow_the_definition(samples):
    old, new = samples
    # features with unlike numbers of marks, so that some are filled up
    items = [
        build_feature_reference(column, tensor="x", feature=str(place), index=place)
        for place, column in enumerate((old, old[:1], new))
    ]
    block = numeric(np.column_stack([new] * len(items)))
    valid = (~np.isnan(block)).sum(axis=0)
    for marks in (SearchedMarks(items), ComparedMarks(items)):
        found = marks.count(marks.arrange(block), valid).tolist()
        for item, counts in zip(items, found, strict=True):
            assert counts[: item.columns] == by_hand(item, new)[0]
            assert not any(counts[item.columns :])


@given(DTYPES.flatmap(columns_of))
def test_a_reference_lies_within_its_own_edges(column):
    item = build_feature_reference(column, tensor="x", feature="f")
    finite = column[np.isfinite(column)] if column.dtype.kind == "f" else column
    if item.kind == "category":
        assert item.counts[-1] == len(column) - len(finite) - item.null
    elif len(finite) and abs(float(finite.max())) < float(np.finfo(np.float16).max):
        assert sum(item.counts[1:-1]) == len(finite)


@given(DTYPES.flatmap(columns_of))
def test_the_column_of_each_row_agrees_with_the_counts(column):
    item = build_feature_reference(column, tensor="x", feature="f")
    found = np.bincount(_codes(item, column), minlength=item.columns + 1).tolist()
    assert found == [*item.counts, item.null]


@given(
    hnp.arrays("float32", (7, 3), elements=st.floats(-100, 100, width=32)),
    hnp.arrays("float32", (300, 3), elements=st.floats(-100, 100, width=32)),
)
def test_tallies_add_like_the_rows(first, second):
    counter = EdgeCounter([
        FeatureReference(
            tensor="x", feature=str(place), index=place, kind="numeric", edges=[-50.0, 0.0, 3.0],
            counts=[0] * 4, null=0, mean=1.5, std=2.0, calibration=independent(4),
        )
        for place in range(3)
    ])  # fmt: skip
    whole = counter.count(np.concatenate([first, second]))
    parts = counter.count(first).add(counter.count(second))
    for name in ("counts", "null", "n", "low", "high"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    z = (np.concatenate([first, second]).astype(np.float64) - 1.5) / 2.0
    np.testing.assert_allclose(parts.mean, z.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(parts.m2 / len(z), z.var(axis=0), rtol=1e-9, atol=1e-9)


def test_huge_and_infinite_values_leave_the_moments_finite():
    item = build_feature_reference(np.linspace(0, 1, 100), tensor="x", feature="f")
    counter = InputCounter([item])
    rows = np.array([0.5, np.inf, -np.inf, 1e300, np.nan])[:, None]
    columns = counter.columns(counter.count({"x": rows}))
    assert (columns.n, columns.null) == ([1], [1])
    assert (columns.counts[0][0], columns.counts[0][-1]) == (1, 2)
    assert all(math.isfinite(value) for value in (*columns.mean, *columns.m2))


def test_text_is_counted_by_category():
    old = np.array(["a", "b", "a", None], dtype=object)
    item = build_feature_reference(old, tensor="t", feature="colour")
    assert (item.categories, item.counts, item.null) == (["a", "b"], [2, 1, 0], 1)
    counter = InputCounter([item])
    new = np.array([["b"], ["c"], [b"a"], [None]], dtype=object)
    columns = counter.columns(counter.count({"t": new}))
    assert (columns.counts, columns.null) == ([[1, 1, 1]], [1])


def test_text_with_many_values_keeps_the_most_frequent():
    old = np.array([f"v{place:03}" for place in range(100)] + ["v099"] * 3, dtype=object)
    item = build_feature_reference(old, tensor="t", feature="f")
    assert len(item.categories) == 32
    assert "v099" in item.categories
    assert item.counts[-1] == 68


def test_few_whole_numbers_are_categories_and_many_are_not():
    few = build_feature_reference(np.arange(320) % 32, tensor="x", feature="f")
    many = build_feature_reference(np.arange(330) % 33, tensor="x", feature="f")
    assert (few.kind, len(few.categories)) == ("category", 32)
    assert many.kind == "numeric"


def test_edges_are_exact_in_the_dtype_and_merge_ties():
    values = np.array([0.0] * 500 + [1.0] * 400 + list(np.linspace(0.1, 0.9, 100)), np.float32)
    edges = quantile_edges(values)
    assert edges == sorted(set(edges))
    assert [float(np.float32(edge)) for edge in edges] == edges
    item = build_feature_reference(values, tensor="x", feature="f")
    # the tie at either end has a bin of its own
    assert item.counts[-2] == 400
    assert item.counts[1] >= 500


def test_a_constant_and_an_empty_column_can_be_described():
    constant = build_feature_reference(np.full(50, 0.3, np.float32), tensor="x", feature="f")
    assert constant.counts == [0, 50, 0]
    assert constant.unit == 1.0
    nothing = build_feature_reference(np.full(5, np.nan), tensor="x", feature="f")
    assert (nothing.edges, nothing.counts, nothing.null) == ([0.0], [0, 0], 5)


def description(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Description:
    return Description(
        name="m", version="1.0.0", variant="generic", task="classification", inputs=inputs,
        outputs=outputs, precision="fp32", ir_version=10, opsets={"": 18}, operators=[],
        min_runtime="1.31.0", platform=Platform(architecture="amd64"),
        golden=Golden(rows=1, atol=0.0, rtol=0.0, top1_agreement=1.0, derived="test"),
        provenance=Provenance(source_digest="sha256:" + "0" * 64, framework="test"),
    )  # fmt: skip


def spec(name: str, kind: str = "data", **fields: object) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=["n", 2], kind=kind, **fields)


def test_a_reference_covers_inputs_and_outputs():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    p = rng.dirichlet([1.0, 1.0, 1.0], 400).astype(np.float32)
    state = TensorSpec(name="h", dtype="float32", shape=[1], role="state", source="h2")
    made = build_reference(
        description(
            [spec("x", features=["a", "b"]), state],
            [TensorSpec(name="p", dtype="float32", shape=["n", 3], kind="probabilities")],
        ),
        {"x": x},
        {"p": p},
    )
    assert parse_reference(made.to_bytes()) == made
    assert [item.feature for item in made.inputs] == ["a", "b"]
    assert made.outputs.classes == ["0", "1", "2"]
    assert made.outputs.class_counts == [*np.bincount(p.argmax(axis=1), minlength=3).tolist(), 0]
    assert sum(made.outputs.score.counts) == 400
    assert made.inputs[0].calibration == independent(16)


def test_edges_are_inherited_so_that_counts_compare():
    rng = np.random.default_rng(6)
    what = description([spec("x", features=["a", "b"])], [spec("y", "values", features=["u", "v"])])
    x, y = rng.normal(size=(2, 300, 2))
    old = build_reference(what, {"x": x}, {"y": y})
    new = build_reference(what, {"x": x + 1}, {"y": y + 1}, inherited=old)
    assert reference_id(new) == reference_id(old)
    assert new.inputs[0].counts != old.inputs[0].counts
    assert new.inputs[0].counts[-1] > 0
    assert reference_id(build_reference(what, {"x": x + 1}, {"y": y + 1})) != reference_id(old)


def test_a_wide_tensor_is_described_by_scalars():
    rng = np.random.default_rng(7)
    images = rng.normal(size=(60, 3, 20, 20)).astype(np.float32)
    what = description(
        [TensorSpec(name="image", dtype="float32", shape=["n", 3, 20, 20])],
        [TensorSpec(name="p", dtype="float32", shape=["n", 2], kind="scores")],
    )
    made = build_reference(what, {"image": images}, {"p": rng.normal(size=(60, 2))})
    assert [item.feature for item in made.inputs] == [
        "image.mean", "image.std", "image.min", "image.max",
    ]  # fmt: skip
    counter = InputCounter(made.inputs)
    tally = counter.columns(counter.count({"image": images}))
    assert tally.counts == [item.counts for item in made.inputs]
    dark = counter.columns(counter.count({"image": images - 9}))
    assert dark.counts[0][0] == 60


def test_no_more_than_the_cap_is_tracked():
    columns = MAX_FEATURES - 2
    inputs = [
        TensorSpec(name="a", dtype="float32", shape=["n", columns]),
        TensorSpec(name="b", dtype="float32", shape=["n", 3]),
        TensorSpec(name="c", dtype="float32", shape=["n", 2]),
    ]
    rows = {item.name: np.ones((4, item.shape[1]), np.float32) for item in inputs}
    made = build_reference(description(inputs, [spec("y", "values")]), rows, {"y": np.ones((4, 2))})
    assert len(made.inputs) == MAX_FEATURES
    assert {item.tensor for item in made.inputs} == {"a", "c"}


def test_a_reference_needs_rows():
    with pytest.raises(ValueError, match="rows"):
        build_reference(description([spec("x")], [spec("y", "values")]), {"x": np.ones((0, 2))}, {})


CLASS_CASES = {
    "probabilities": ("probabilities", None, [[0.2, 0.8], [0.9, 0.1]], [1, 0]),
    "one probability": ("probabilities", ["no", "yes"], [[0.7], [0.2]], [1, 0]),
    "scores": ("scores", None, [[-3.0, 3.0], [5.0, 1.0]], [1, 0]),
    "one score": ("scores", ["no", "yes"], [[2.0], [-2.0]], [1, 0]),
    "labels": ("label", ["no", "yes"], np.array(["yes", "no"], object), [1, 0]),
    "labels by place": ("label", ["no", "yes"], np.array([1, 0]), [1, 0]),
    "numbers as labels": ("label", ["3", "7"], np.array([7, 3]), [1, 0]),
    "an unknown label": ("label", ["no", "yes"], np.array(["yes", "?"], object), [1, -1]),
    "not finite": ("probabilities", None, [[np.nan, 0.5], [0.1, 0.9]], [UNKNOWN_CLASS, 1]),
}


@pytest.mark.parametrize("case", CLASS_CASES.values(), ids=CLASS_CASES.keys())
def test_the_class_is_read_from_what_the_model_gives(case):
    kind, labels, values, expected = case
    outputs = [spec("y", kind, labels=labels)]
    reader = ClassReader(outputs)
    assert reader.top1({"y": np.asarray(values)}).tolist() == expected
    counter = OutputCounter(outputs, empty_output_reference(outputs))
    columns = counter.columns(counter.count({"y": np.asarray(values)}))
    assert columns.classes == [expected.count(0), expected.count(1), expected.count(-1)]
    known = 0 if kind == "label" else 2 - expected.count(-1)
    assert [sum(columns.score), sum(columns.margin), sum(columns.entropy)] == [known] * 3


def test_probabilities_are_preferred_to_labels():
    outputs = [spec("label", "label", labels=["a", "b"]), spec("p", "probabilities")]
    reader = ClassReader(outputs)
    assert reader.tensors == ["p"]
    assert reader.labels == ["a", "b"]


def test_confidence_follows_its_definition():
    found = confidence(np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    assert found["score"] == pytest.approx([0.7, 1.0, 1 / 3])
    assert found["margin"] == pytest.approx([0.5, 1.0, 0.0])
    first = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1)) / math.log(3)
    assert found["entropy"] == pytest.approx([first, 0.0, 1.0])


def test_rows_that_alternate_are_trusted_no_more_than_independent_ones():
    codes = np.arange(1000) % 4
    assert long_run_calibration(codes, 5) == independent(4)


def test_rows_in_runs_count_for_less():
    rng = np.random.default_rng(8)
    codes = np.repeat(rng.integers(0, 4, 500), 10)
    found = long_run_calibration(codes, 4)
    # runs of 10 equal rows have 10 times the long-run variance
    assert found.sum_l == pytest.approx(30.0, rel=0.25)
    assert found.max_l >= found.sum_l2 / found.sum_l
