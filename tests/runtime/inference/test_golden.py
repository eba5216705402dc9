from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.description import Golden
from edgepack_runtime.inference.errors import GoldenError
from edgepack_runtime.inference.golden import (
    GoldenRows,
    check_golden,
    compare_golden,
    golden_bytes,
    load_golden,
    run_rows,
)
from edgepack_runtime.inference.variant import open_variant, read_description


def golden(**changes) -> Golden:
    fields = {"rows": 2, "atol": 0.01, "rtol": 0.0, "top1_agreement": 1.0, "derived": "test"}
    return Golden(**(fields | changes))


def test_a_model_agrees_with_its_own_golden_rows(make_variant):
    folder = make_variant("v")
    description = read_description(folder)
    session = open_variant(folder, description)
    result = check_golden(session, folder / "golden.safetensors", description.golden)
    assert result.ok
    assert result.rows == 8
    assert result.top1_agreement == 1.0
    assert result.words == ""


def test_another_model_does_not(make_variant):
    folder, other = make_variant("v", seed=1), make_variant("other", seed=2)
    description = read_description(folder)
    session = open_variant(other, description)
    result = check_golden(session, folder / "golden.safetensors", description.golden)
    assert not result.ok
    assert result.max_difference > 0.01
    assert "'probabilities'" in result.words
    assert "decisions agree" in result.words


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_a_row_is_a_run(make_variant, batch):
    folder = make_variant("v", batch=batch)
    description = read_description(folder)
    session = open_variant(folder, description)
    rows = load_golden(folder / "golden.safetensors")
    entries = 8 * (batch if isinstance(batch, int) else 1)
    assert rows.inputs["x"].shape == (entries, 4)
    assert run_rows(session, rows.inputs, 8)["label"].shape == (entries,)
    with pytest.raises(GoldenError, match="does not hold 9 rows"):
        run_rows(session, rows.inputs, 9)


PROBABILITIES = np.array([[0.6, 0.4], [0.2, 0.8]], np.float32)


@pytest.mark.parametrize(
    ("given", "expected", "changes", "words"),
    [
        (PROBABILITIES, PROBABILITIES, {}, ""),
        (PROBABILITIES + np.float32(0.009), PROBABILITIES, {}, ""),
        (PROBABILITIES + np.float32(0.02), PROBABILITIES, {}, "4 of 4 values outside"),
        (PROBABILITIES[:, ::-1], PROBABILITIES, {"atol": 1.0}, "0.00% of the decisions"),
        (PROBABILITIES[:, ::-1], PROBABILITIES, {"atol": 1.0, "top1_agreement": 0.0}, ""),
        (PROBABILITIES[:1], PROBABILITIES, {}, "shape"),
        (PROBABILITIES * np.nan, PROBABILITIES, {}, "4 of 4 values outside"),
        (PROBABILITIES * np.nan, PROBABILITIES * np.nan, {}, ""),
        (np.array([1, 2]), np.array([1, 3]), {}, "50.00% of the decisions"),
        (np.array([1, 2]), np.array([1, 3]), {"top1_agreement": 0.5}, ""),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), {}, ""),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), {}, "50.00%"),
        (np.array([1.0, 5.0]), np.array([1.0, 5.1]), {}, "1 of 2 values"),
        (np.array([1.0, 5.0]), np.array([1.0, 5.1]), {"rtol": 0.05}, ""),
    ],
)
def test_comparison(given, expected, changes, words):
    result = compare_golden({"y": given}, {"y": expected}, golden(**changes))
    assert result.ok == (not words)
    assert words in result.words


def test_other_outputs_are_an_error():
    with pytest.raises(GoldenError, match="expect the outputs"):
        compare_golden({"y": PROBABILITIES}, {"z": PROBABILITIES}, golden())


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
        min_size=1,
        max_size=5,
    )
)
def test_texts_survive(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("golden") / "golden.safetensors"
    rows = GoldenRows({"x": np.array(texts, object)}, {"y": np.array([1.5], np.float32)})
    path.write_bytes(golden_bytes(rows))
    back = load_golden(path)
    assert back.inputs["x"].tolist() == texts
    assert back.outputs["y"].tolist() == [1.5]


def test_the_bytes_do_not_depend_on_order():
    one = GoldenRows({"a": PROBABILITIES, "b": PROBABILITIES}, {"y": PROBABILITIES})
    two = GoldenRows({"b": PROBABILITIES, "a": PROBABILITIES}, {"y": PROBABILITIES})
    assert golden_bytes(one) == golden_bytes(two)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_not_golden_is_refused(tmp_path, content, make_variant):
    path = tmp_path / "golden.safetensors"
    path.write_bytes(content)
    folder = make_variant("v")
    description = read_description(folder)
    with pytest.raises(GoldenError):
        check_golden(open_variant(folder, description), path, description.golden)


def test_a_missing_file_is_a_golden_error(tmp_path):
    with pytest.raises(GoldenError, match="cannot be read"):
        load_golden(tmp_path / "golden.safetensors")
