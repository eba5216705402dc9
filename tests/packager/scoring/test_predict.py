"""Tables are scored as the device scores rows; whole, or not at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from graph_bundles import graph, graph_bundle
from onnx import helper
from pyarrow import csv as pa_csv
from pyarrow import parquet as pa_parquet
from world_bundles import LABELS, tiny_bundle

from edgepack_contract.description import TensorSpec
from edgepack_contract.errors import UnsupportedBundleError, UntrustedBundleError
from edgepack_contract.keyring import Keyring
from edgepack_packager.errors import DataError, RecipeError
from edgepack_packager.scoring.batch_model import open_model
from edgepack_packager.scoring.predict import Scoring, metadata_path, predict

FEATURES = ["a", "b", "c", "d"]


def spec(name="x", dtype="float32", shape=("n", 4), **more):
    return TensorSpec(name=name, dtype=dtype, shape=list(shape), **more)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A classifier of four named features that gives probabilities of three classes."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.edgepack"
    tiny_bundle(path, "1.0.0", inputs=[spec(features=FEATURES)])
    return path


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(3).normal(size=(100, 4)).astype(np.float32)


def table(rows, **more):
    return pa.table({name: rows[:, place] for place, name in enumerate(FEATURES)} | more)


def score(bundle, data, output, *, name="rows.parquet", keyring=None, **scoring):
    source = output.parent / name
    if isinstance(data, str):
        source.write_text(data)
    elif source.suffix == ".csv":
        pa_csv.write_csv(data, source)
    else:
        pa_parquet.write_table(data, source)
    return predict(
        bundle, source, output, Scoring(**scoring), keyring=keyring,
        clock=lambda: datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip


def expected(bundle, rows):
    with open_model(bundle, keyring=None, variant=None, threads=1) as model:
        return np.concatenate([model.run({"x": rows[i : i + 1]})["p"] for i in range(len(rows))])


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv"])
@pytest.mark.parametrize("chunk", [None, 7, 1])
def test_answers_are_those_of_single_rows_whatever_the_chunks(tiny, rows, tmp_path, name, chunk):
    made = score(tiny, table(rows), tmp_path / "out.parquet", name=name, chunk_rows=chunk)
    found = pa_parquet.read_table(tmp_path / "out.parquet")
    assert found.column_names == ["label", *(f"probability_{label}" for label in LABELS)]
    wanted = expected(tiny, rows)
    given = np.column_stack([found.column(f"probability_{label}") for label in LABELS])
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-6)
    assert found.column("label").to_pylist() == [LABELS[best] for best in wanted.argmax(axis=1)]
    assert (made.rows, made.refused) == (100, 0)


def test_a_large_row_group_comes_in_pieces(tiny, rows, tmp_path):
    seen = []
    source = tmp_path / "rows.parquet"
    pa_parquet.write_table(table(rows), source, row_group_size=100)
    predict(
        tiny, source, tmp_path / "out.parquet", Scoring(chunk_rows=30),
        watch=lambda *told: seen.append(told), clock=lambda: datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip
    assert [(done, round(share, 2)) for done, share in seen] == [
        (30, 0.3), (60, 0.6), (90, 0.9), (100, 1.0),
    ]  # fmt: skip


def test_the_metadata_say_what_was_done(tiny, rows, tmp_path):
    made = score(tiny, table(rows), tmp_path / "out.csv")
    told = json.loads(metadata_path(tmp_path / "out.csv").read_bytes())
    assert told["schema"] == "edgepack-prediction/1"
    assert told["bundle"]["name"] == "tiny"
    assert told["input"]["digest"].startswith("sha256:")
    assert told["input"]["columns"] == {"x": FEATURES}
    assert (told["rows"], told["refused"]) == (100, 0)
    assert told["started"] == "2026-01-02T00:00:00Z"
    assert told["columns"] == list(made.columns)


def test_kept_columns_are_carried_through_as_they_are_written(tiny, tmp_path):
    text = "id,a,b,c,d\n007,1,2,3,4\n1e3,1,2,3,4\n"
    score(tiny, text, tmp_path / "out.csv", name="in.csv", keep=("id",))
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ['"id"', '"007"', '"1e3"']


def test_all_columns_are_kept_on_request(tiny, rows, tmp_path):
    more = {"day": pa.array(["x"] * 100).dictionary_encode(), "n": np.arange(100)}
    score(tiny, table(rows, **more), tmp_path / "out.parquet", keep="all")
    found = pa_parquet.read_table(tmp_path / "out.parquet")
    assert found.column_names[:6] == [*FEATURES, "day", "n"]
    assert found.column("n").to_pylist() == list(range(100))
    assert found.schema.field("day").type == pa.string()


def test_a_kept_column_may_not_be_taken_for_an_answer(tiny, rows, tmp_path):
    data = table(rows, label=np.zeros(100))
    with pytest.raises(DataError, match="--prefix"):
        score(tiny, data, tmp_path / "out.csv", keep=("label",))
    score(tiny, data, tmp_path / "out.csv", keep=("label",), prefix="model_")
    assert (tmp_path / "out.csv").read_text().startswith('"label","model_label"')


BAD = "a,b,c,d\n1,2,3,4\n1,x,3,4\n,2,3,4\n1,2,inf,4\n 1, 2, 3, 4\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1,x,3,4", "row 2: column 'b' holds 'x', expected a number"),
        (",2,3,4", "row 2: column 'a' holds '', expected a finite number"),
        ("1,2,nan,4", "row 2: column 'c' holds 'nan'"),
        ("1,2,1e39,4", "row 2: column 'c' holds '1e39'"),
        ("1,2,1_0,4", "row 2: column 'c' holds '1_0', expected a number"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(tiny, tmp_path, line, words):
    with pytest.raises(DataError, match=words) as caught:
        score(tiny, f"a,b,c,d\n1,2,3,4\n{line}\n", tmp_path / "out.csv", name="in.csv")
    assert caught.value.code == "bad-row"
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_on_request_such_rows_get_null_and_are_counted(tiny, tmp_path, chunk):
    made = score(
        tiny, BAD, tmp_path / "out.parquet", name="in.csv", on_error="null", chunk_rows=chunk
    )
    found = pa_parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["label"] is None for row in found] == [False, True, True, True, False]
    assert [row["probability_ok"] is None for row in found] == [False, True, True, True, False]
    assert found[0] == found[4]
    assert (made.rows, made.refused) == (5, 3)
    assert [one.row for one in made.refusals] == [2, 3, 4]


def test_nan_and_null_of_parquet_are_refused_alike(tiny, rows, tmp_path):
    data = table(rows[:3])
    data = data.set_column(1, "b", pa.array([1.0, None, float("nan")]))
    made = score(tiny, data, tmp_path / "out.csv", on_error="null")
    assert [one.row for one in made.refusals] == [2, 3]


def test_a_bundle_that_counts_nan_scores_it(tmp_path, rows):
    tiny_bundle(
        tmp_path / "t.edgepack", "1.0.0", inputs=[spec(features=FEATURES)], on_nonfinite="count"
    )
    data = table(rows[:2]).set_column(1, "b", pa.array([1.0, None]))
    assert score(tmp_path / "t.edgepack", data, tmp_path / "out.csv").refused == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a,b,c\n1,2,3\n", "no column 'd'"),
        ("a,b,c,d\n1,2,3\n", "Expected 4 columns, got 3"),
        ("", "Empty CSV"),
        ("a,a,b,c,d\n1,1,2,3,4\n", "column a is there twice"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tiny, tmp_path, data, words):
    with pytest.raises(DataError, match=words):
        score(tiny, data, tmp_path / "out.csv", name="in.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_columns_of_a_wrong_type_are_refused(tiny, rows, tmp_path):
    data = table(rows).set_column(0, "a", pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 100))
    with pytest.raises(DataError, match=r"'a' holds timestamp.* takes float32"):
        score(tiny, data, tmp_path / "out.csv")


def test_a_table_without_rows_gives_one_without_rows(tiny, tmp_path):
    assert score(tiny, "a,b,c,d\n", tmp_path / "out.csv", name="in.csv").rows == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1


def test_columns_without_names_are_taken_side_by_side(tmp_path, rows):
    tiny_bundle(tmp_path / "t.edgepack", "1.0.0")
    data = pa.table({"id": np.arange(100)} | {f"v{i}": rows[:, i] for i in range(4)})
    with pytest.raises(DataError, match="takes 4 columns and names none of them, the data have 5"):
        score(tmp_path / "t.edgepack", data, tmp_path / "out.csv")
    score(tmp_path / "t.edgepack", data, tmp_path / "out.csv", keep=("id",))
    wanted = expected(tmp_path / "t.edgepack", rows)
    given = pa_csv.read_csv(tmp_path / "out.csv").column("probability_worn")
    np.testing.assert_allclose(given, wanted[:, 1], rtol=1e-4)


def test_a_column_of_lists_feeds_a_whole_input(tmp_path, rows):
    tiny_bundle(tmp_path / "t.edgepack", "1.0.0")
    score(tmp_path / "t.edgepack", pa.table({"x": rows.tolist()}), tmp_path / "out.parquet")
    given = pa_parquet.read_table(tmp_path / "out.parquet").column("probability_worn")
    np.testing.assert_allclose(given, expected(tmp_path / "t.edgepack", rows)[:, 1], rtol=1e-4)
    with pytest.raises(DataError, match="different lengths"):
        score(tmp_path / "t.edgepack", pa.table({"x": [[1.0], [1.0, 2.0]]}), tmp_path / "o.csv")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A text, a whole number and an image in; the text, a number and an image out."""
    inputs = [
        spec("t", "str", ["n"]),
        spec("i", "int64", ["n", 1]),
        spec("m", "float32", ["n", 2, 2]),
    ]
    outputs = [
        spec("u", "str", ["n"]),
        spec("j", "int64", ["n", 1]),
        spec("w", "float32", ["n", 2, 2]),
    ]
    nodes = [
        helper.make_node("Identity", ["t"], ["u"]),
        helper.make_node("Add", ["i", "one"], ["j"]),
        helper.make_node("Neg", ["m"], ["w"]),
    ]
    raw = graph(nodes, inputs, outputs, one=np.array([[1]], np.int64))
    path = tmp_path_factory.mktemp("mixed") / "mixed.edgepack"
    rows = {
        "t": np.array(["a", "b"], object), "i": np.array([[1], [2]]),
        "m": np.zeros((2, 2, 2), np.float32),
    }  # fmt: skip
    graph_bundle(path, raw, rows, task="other", inputs=inputs, outputs=outputs)
    return path


def test_several_inputs_of_every_kind(mixed, tmp_path):
    data = pa.table({
        "t": ["ä", ""], "i": pa.array([5.0, 6.0]), "m": [[[1.0, 2.0], [3.0, 4.0]]] * 2,
    })  # fmt: skip
    score(mixed, data, tmp_path / "out.parquet")
    assert pa_parquet.read_table(tmp_path / "out.parquet").to_pylist() == [
        {"u": "ä", "j": 6, "w": [-1.0, -2.0, -3.0, -4.0]},
        {"u": "", "j": 7, "w": [-1.0, -2.0, -3.0, -4.0]},
    ]


def test_a_csv_has_no_place_for_lists(mixed, tmp_path):
    data = pa.table({"t": ["a"], "i": [5], "m": [[1.0, 2.0, 3.0, 4.0]]})
    with pytest.raises(DataError, match=r"'w' holds fixed_size_list.*write a \.parquet"):
        score(mixed, data, tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.5, "holds 1.5, expected a whole number of int64"), (None, "holds nothing"),
     (float("nan"), "holds nan")],
)  # fmt: skip
def test_a_fraction_is_no_whole_number(mixed, tmp_path, value, words):
    data = pa.table({"t": ["a"], "i": pa.array([value], pa.float64()), "m": [[1.0, 2.0, 3.0, 4.0]]})
    with pytest.raises(DataError, match=words):
        score(mixed, data, tmp_path / "out.parquet")


def test_a_text_that_is_missing_and_a_number_where_text_is_due(mixed, tmp_path):
    base = {"i": [1], "m": [[1.0, 2.0, 3.0, 4.0]]}
    with pytest.raises(DataError, match="row 1: column 't' holds nothing, expected text"):
        score(mixed, pa.table(base | {"t": pa.array([None], pa.string())}), tmp_path / "o.parquet")
    with pytest.raises(DataError, match="'t' holds int64, the model takes text"):
        score(mixed, pa.table(base | {"t": [1]}), tmp_path / "o.parquet")
    with pytest.raises(DataError, match="no column 't', which the model takes as one of several"):
        score(mixed, pa.table(base), tmp_path / "o.parquet")


def test_a_model_with_states_is_refused_plainly(tmp_path):
    inputs = [spec("x", shape=["n", 1]), spec("h", shape=["n", 1], role="state", source="g")]
    outputs = [spec("g", shape=["n", 1])]
    raw = graph([helper.make_node("Add", ["x", "h"], ["g"])], inputs, outputs)
    zeros = np.zeros((2, 1), np.float32)
    graph_bundle(tmp_path / "s.edgepack", raw, {"x": zeros, "h": zeros}, task="other",
                 inputs=inputs, outputs=outputs)  # fmt: skip
    with pytest.raises(DataError, match=r"input h is a state"):
        score(tmp_path / "s.edgepack", pa.table({"x": [1.0]}), tmp_path / "out.csv")


@pytest.fixture(scope="module")
def picky(tmp_path_factory):
    """A model that fails at an index outside 0, 1, 2."""
    inputs, outputs = [spec("i", "int64", ["n"])], [spec("v", shape=["n"])]
    raw = graph([helper.make_node("Gather", ["t", "i"], ["v"])], inputs, outputs,
                t=np.array([10, 11, 12], np.float32))  # fmt: skip
    path = tmp_path_factory.mktemp("picky") / "picky.edgepack"
    graph_bundle(
        path, raw, {"i": np.array([0, 1])}, task="regression", inputs=inputs, outputs=outputs
    )
    return path


def test_the_row_that_a_model_fails_on_is_found(picky, tmp_path):
    data = pa.table({"i": [0, 1, 2, 9, 0, -8, 2]})
    with pytest.raises(DataError, match="row 4: the model failed"):
        score(picky, data, tmp_path / "out.csv")
    made = score(picky, data, tmp_path / "out.parquet", on_error="null")
    values = pa_parquet.read_table(tmp_path / "out.parquet").column("v").to_pylist()
    assert values == [10, 11, 12, None, 10, None, 12]
    assert [one.row for one in made.refusals] == [4, 6]


def test_a_csv_of_one_column_cannot_show_that_an_answer_is_missing(picky, tmp_path):
    data = pa.table({"i": [0, 9]})
    with pytest.raises(DataError, match="an empty line, which readers skip"):
        score(picky, data, tmp_path / "out.csv", on_error="null")
    score(picky, data, tmp_path / "out.csv", on_error="null", keep=("i",))
    assert pa_csv.read_csv(tmp_path / "out.csv").column("v").to_pylist() == [10, None]


def test_dynamic_scales_are_those_of_single_rows(tmp_path, rows):
    """With a batch, the largest value of any row would scale all the others."""
    inputs, outputs = [spec()], [spec("y", shape=["n", 4])]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    raw = graph(nodes, inputs, outputs)
    graph_bundle(tmp_path / "d.edgepack", raw, {"x": rows[:4]}, precision="int8-dynamic",
                 task="other", inputs=inputs, outputs=outputs)  # fmt: skip
    data = rows[:10] * (10.0 ** np.arange(10, dtype=np.float32))[:, None]
    score(tmp_path / "d.edgepack", pa.table({"x": data.tolist()}), tmp_path / "out.parquet")
    given = pa_parquet.read_table(tmp_path / "out.parquet").to_pandas().to_numpy()
    assert np.all(np.abs(given - data) <= np.abs(data).max(axis=1, keepdims=True) / 100)


def test_an_output_is_not_replaced_unasked(tiny, rows, tmp_path):
    score(tiny, table(rows), tmp_path / "out.csv")
    with pytest.raises(RecipeError, match="--overwrite"):
        score(tiny, table(rows), tmp_path / "out.csv")
    score(tiny, table(rows[:5]), tmp_path / "out.csv", overwrite=True)
    assert json.loads(metadata_path(tmp_path / "out.csv").read_bytes())["rows"] == 5


def test_the_input_is_not_replaced_even_when_asked(tiny, rows, tmp_path):
    with pytest.raises(RecipeError, match="is what is to be read"):
        score(tiny, table(rows), tmp_path / "rows.parquet", overwrite=True)
    assert pa_parquet.read_table(tmp_path / "rows.parquet").num_rows == 100


def test_a_failed_run_leaves_an_earlier_output_and_no_metadata_of_another(tiny, rows, tmp_path):
    score(tiny, table(rows), tmp_path / "out.csv")
    before = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(DataError):
        score(tiny, BAD, tmp_path / "out.csv", name="in.csv", overwrite=True)
    assert (tmp_path / "out.csv").read_bytes() == before


def test_a_table_that_changes_while_it_is_read_is_refused(tiny, rows, tmp_path):
    source = tmp_path / "rows.csv"
    pa_csv.write_csv(table(rows), source)

    def touch(done: int, share: float) -> None:
        with source.open("a") as stream:
            stream.write("1,2,3,4\n")

    with pytest.raises(DataError, match="was changed while it was read"):
        predict(tiny, source, tmp_path / "out.csv", Scoring(), watch=touch,
                clock=lambda: datetime(2026, 1, 2, tzinfo=UTC))  # fmt: skip
    assert not (tmp_path / "out.csv").exists()


def test_a_bundle_that_nobody_signed_and_a_variant_that_is_not_there(tiny, rows, tmp_path):
    ring = Keyring(schema="edgepack-keyring/1", version=1, epoch=1, issued=0, owners=["0" * 64],
                   publishers=[], fleets=[])  # fmt: skip
    with pytest.raises(UntrustedBundleError):
        score(tiny, table(rows), tmp_path / "out.csv", keyring=ring)
    with pytest.raises(UnsupportedBundleError, match="there is no variant 'rpi5'"):
        score(tiny, table(rows), tmp_path / "out.csv", variant="rpi5")
