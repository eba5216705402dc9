"""scikit-learn models with columns of several types: inputs, missing texts, answers."""

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    StandardScaler,
)
from sklearn.svm import LinearSVC

from edgepack_contract.description import TensorSpec
from edgepack_packager.data.rows import cast_feeds
from edgepack_packager.errors import ConversionError, DataError, ModelSourceError
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.sources import LoadContext
from edgepack_packager.sources.flips import differing_rows
from edgepack_packager.sources.from_sklearn import convert_estimator

ROWS = 300


def table():
    random = np.random.default_rng(0)
    plan = random.choice(["basic", "pro", "team"], ROWS).astype(object)
    plan[random.random(ROWS) < 0.1] = np.nan
    spend = np.round(random.normal(50, 20, ROWS), 2)
    spend[random.random(ROWS) < 0.1] = np.nan
    return pd.DataFrame({
        "age": random.integers(18, 80, ROWS),
        "monthly spend": spend,
        "plan": plan,
        "zone": random.integers(0, 5, ROWS),
        "note": random.choice(["Good stuff", "bad stuff here", "hello"], ROWS),
    })  # fmt: skip


TABLE = table()
LABELS = np.where((TABLE.age < 40) ^ (TABLE.plan == "pro"), "leaves", "stays")
NUMBERS = make_pipeline(SimpleImputer(), StandardScaler())
ONE_HOT = OneHotEncoder(handle_unknown="ignore")
MOST = make_pipeline(SimpleImputer(strategy="most_frequent"), ONE_HOT)
NONE = make_pipeline(SimpleImputer(strategy="constant", fill_value="none"), ONE_HOT)
ORDINAL = OrdinalEncoder(encoded_missing_value=3)


def converted(model, folder, columns=None):
    context = LoadContext(folder, columns=columns or {})
    return convert_estimator(model, context, digest="sha256:0", passes=())


def specs(source):
    kinds = {1: "float32", 7: "int64", 8: "str", 11: "float64"}
    return [
        TensorSpec(
            name=item.name,
            dtype=kinds[item.type.tensor_type.elem_type],
            shape=["batch", item.type.tensor_type.shape.dim[1].dim_value],
        )
        for item in source.graph.graph.input
    ]


def differing(source, feeds, folder):
    """Rows that the graph answers otherwise than the framework."""
    save_model(source.graph, folder)
    ours = run_rows(open_folder(folder), cast_feeds(feeds, specs(source)))
    return int(np.count_nonzero(differing_rows(source.answer(feeds), ours)))


def by_column(frame, names):
    # as they come from a table of rows, where a missing text is None
    feeds = {
        name: frame[name].to_numpy(object if name in {"plan", "note"} else None) for name in names
    }
    if "plan" in feeds:
        feeds["plan"] = np.where(pd.isna(feeds["plan"]), None, feeds["plan"])
    return {name: values[:, None] for name, values in feeds.items()}


@pytest.mark.parametrize(
    ("steps", "inputs"),
    [
        (
            [("n", NUMBERS, ["age", "monthly spend"]), ("c", ONE_HOT, ["plan"])],
            {"age": "float32", "monthly spend": "float32", "plan": "str"},
        ),
        (
            [("n", NUMBERS, [0, 1]), ("c", ONE_HOT, ["zone"])],
            {"age": "float32", "monthly spend": "float32", "zone": "int64"},
        ),
        ([("t", TfidfVectorizer(), "note"), ("z", ONE_HOT, [3])], {"note": "str", "zone": "int64"}),
        (
            [("c", MOST, ["plan"])],
            {"plan": "str"},
        ),
        (
            [("c", NONE, ["plan"])],
            {"plan": "str"},
        ),
        (
            [("c", ORDINAL, ["plan"]), ("p", "passthrough", ["age"])],
            {"age": "float32", "plan": "str"},
        ),
    ],
)  # fmt: skip
def test_each_column_is_an_input_of_its_type(steps, inputs, tmp_path):
    model = make_pipeline(ColumnTransformer(steps), LogisticRegression(max_iter=500))
    model.fit(TABLE, LABELS)
    source = converted(model, tmp_path)
    assert {spec.name: spec.dtype for spec in specs(source)} == inputs
    assert source.features is None
    assert source.classes == ("leaves", "stays")
    assert differing(source, by_column(TABLE, inputs), tmp_path / "m") == 0


def test_missing_texts_are_seen_by_source_and_graph_alike(tmp_path):
    # the share of missing texts would be lost if either took them for an unknown one
    model = make_pipeline(ColumnTransformer([("c", ONE_HOT, ["plan"])]), LogisticRegression())
    source = converted(model.fit(TABLE, TABLE.plan.isna()), tmp_path)
    feeds = by_column(TABLE, ["plan"])
    assert differing(source, feeds, tmp_path / "m") == 0
    assert source.answer(feeds)["label"].tolist() == TABLE.plan.isna().astype(int).tolist()
    empty = {"plan": np.where(pd.isna(feeds["plan"]), "", feeds["plan"])}
    assert source.answer(empty)["label"].tolist() == source.answer(feeds)["label"].tolist()


def test_whole_numbers_in_a_column_of_texts_are_written_out(tmp_path):
    frame = pd.DataFrame({"code": np.array(["12", "34"], object)[np.arange(ROWS) % 2]})
    model = make_pipeline(ColumnTransformer([("c", ONE_HOT, ["code"])]), LogisticRegression())
    source = converted(model.fit(frame, frame.code == "12"), tmp_path)
    feeds = {"code": frame.code.to_numpy(np.int64)[:, None]}
    assert source.answer(feeds)["label"].tolist() == (frame.code == "12").astype(int).tolist()
    assert differing(source, feeds, tmp_path / "m") == 0


def test_versions_of_operators_are_in_an_order(tmp_path):
    # the converter writes them in the order of a set, which would change the digest
    source = converted(LogisticRegression().fit(np.eye(4), [0, 1, 0, 1]), tmp_path)
    domains = [entry.domain for entry in source.graph.opset_import]
    assert domains == sorted(set(domains))


def test_missing_categories_that_a_graph_cannot_tell_are_refused(tmp_path):
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2
    )
    model = make_pipeline(ColumnTransformer([("c", encoder, ["plan"])]), LogisticRegression())
    with pytest.raises(ConversionError, match=r"columntransformer/c.*SimpleImputer") as caught:
        converted(model.fit(TABLE, LABELS), tmp_path)
    assert caught.value.code == "missing-category"


def test_categories_of_several_types_are_refused(tmp_path):
    frame = pd.DataFrame({"mixed": np.array([1, 1.5, True] * 5, dtype=object)})
    model = make_pipeline(ColumnTransformer([("c", ONE_HOT, ["mixed"])]), LogisticRegression())
    model.fit(frame, [0, 1, 0] * 5)
    model.named_steps["columntransformer"].named_transformers_["c"].categories_ = [
        np.array([1, "b"], dtype=object)
    ]
    with pytest.raises(ConversionError, match="several types") as caught:
        converted(model, tmp_path)
    assert caught.value.code == "mixed-categories"


@pytest.mark.parametrize("scaled", [False, True])
def test_a_stray_text_among_numbers_is_named_by_its_column(scaled, tmp_path):
    numbers = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0) % 3})
    steps = [StandardScaler()] if scaled else []
    model = make_pipeline(*steps, LogisticRegression()).fit(numbers, np.arange(20) % 2)
    columns = {"a": numbers["a"].to_numpy(), "b": np.array(["1.0"] * 19 + ["n/a"], dtype=object)}
    with pytest.raises(DataError, match="column b holds text") as caught:
        converted(model, tmp_path, columns)
    assert caught.value.code == "text-column"


def test_numbers_alone_stay_one_input_with_names(tmp_path):
    frame = TABLE[["age", "zone"]]
    source = converted(Ridge().fit(frame, frame.age * 2.0), tmp_path)
    assert source.features == ("age", "zone")
    feeds = {"input": frame.to_numpy()}
    assert differing(source, feeds, tmp_path / "m") == 0


def test_documents_are_one_input_named_as_the_data(tmp_path):
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TABLE.note, LABELS)
    columns = {"note": TABLE.note.to_numpy(object)[:4]}
    source = converted(model, tmp_path, columns)
    assert [spec.name for spec in specs(source)] == ["note"]
    assert [spec.name for spec in specs(converted(model, tmp_path))] == ["text"]
    # runs without the locale en_US, which devices do not have
    assert differing(source, by_column(TABLE, ["note"]), tmp_path / "m") == 0


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(ROWS) % 3, ("0", "1", "2")),
        (np.array(["no", "yes"])[np.arange(ROWS) % 2], ("no", "yes")),
        (np.arange(ROWS) % 2 == 0, ("0", "1")),
        ((np.arange(ROWS) % 2) * 7 + 3.0, ("3", "10")),
    ],
)
@pytest.mark.parametrize("kind", [LogisticRegression, LinearSVC])
def test_labels_are_kept_exactly(labels, classes, kind, tmp_path):
    x = np.random.default_rng(0).normal(size=(ROWS, 3)) + np.arange(ROWS)[:, None] % 3
    source = converted(kind().fit(x, labels), tmp_path)
    assert source.classes == classes
    assert set(source.answer({"input": x})["label"].astype(str)) <= set(classes)
    assert differing(source, {"input": x}, tmp_path / "m") == 0


@pytest.mark.parametrize("model", [LinearRegression(), RandomForestRegressor(3, random_state=0)])
def test_several_values_a_row(model, tmp_path):
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    source = converted(model.fit(x, x[:, :2] * 2), tmp_path)
    assert source.answer({"input": x})["variable"].shape == (ROWS, 2)
    assert differing(source, {"input": x}, tmp_path / "m") == 0


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        (IsolationForest(n_estimators=5, random_state=0), ("-1", "1")),
        (KMeans(3, n_init=1, random_state=0), ("0", "1", "2")),
    ],
)
def test_outliers_and_clusters_are_labels(model, classes, tmp_path):
    x = np.random.default_rng(0).normal(size=(ROWS, 2))
    source = converted(model.fit(x), tmp_path)
    assert (source.task, source.classes) == ("classification", classes)
    assert differing(source, {"input": x}, tmp_path / "m") == 0


def test_votes_of_probabilities(tmp_path):
    x = np.random.default_rng(0).normal(size=(ROWS, 2))
    parts = [("f", RandomForestClassifier(3, random_state=0)), ("l", LogisticRegression())]
    source = converted(VotingClassifier(parts, voting="soft").fit(x, x[:, 0] > 0), tmp_path)
    assert differing(source, {"input": x.astype(np.float32)}, tmp_path / "m") == 0


class Doubler(FunctionTransformer):
    """A transformer that nobody can convert."""


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (FunctionTransformer(np.abs), r"'functiontransformer', a sklearn Func.*--preprocess"),
        (ColumnTransformer([("odd", Doubler(), [0])]), r"'columntransformer/odd', a test.* Doub.*"),
    ],
)
def test_what_cannot_be_converted_is_named_by_its_step(step, words, tmp_path):
    model = make_pipeline(step, Ridge()).fit(np.arange(12.0).reshape(6, 2), np.arange(6.0))
    with pytest.raises(ConversionError, match=words) as caught:
        converted(model, tmp_path)
    assert caught.value.code == "no-onnx-form"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (Ridge(), "unfitted"),
        (make_pipeline(StandardScaler(), Ridge()), "unfitted"),
        ({"a": 1}, "not-an-estimator"),
    ],
)
def test_what_is_no_fitted_model_is_refused(model, code, tmp_path):
    with pytest.raises(ModelSourceError) as caught:
        converted(model, tmp_path)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("model", "code"),
    [(DBSCAN(), "unsupported-model"), (PowerTransformer(), "unsupported-model")],
)
def test_what_answers_nothing_about_new_rows_is_refused(model, code, tmp_path):
    with pytest.raises(ConversionError) as caught:
        converted(model.fit(np.arange(12.0).reshape(6, 2)), tmp_path)
    assert caught.value.code == code


def test_several_labels_a_row_are_refused(tmp_path):
    x = np.arange(12.0).reshape(6, 2)
    model = RandomForestClassifier(2).fit(x, np.array([[0, 1]] * 3 + [[1, 0]] * 3))
    with pytest.raises(ConversionError, match="one model for each") as caught:
        converted(model, tmp_path)
    assert caught.value.code == "multi-label"
