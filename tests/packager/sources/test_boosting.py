"""XGBoost and LightGBM: their files, their estimators, and what is refused."""

import struct
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.evidence.decisions import open_inputs
from edgepack_packager.graphs.clean import loading_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.sources import LoadContext, load_source
from edgepack_packager.sources.flips import differing_rows, settle_precision
from edgepack_packager.sources.from_sklearn import convert_estimator
from edgepack_packager.sources.tree_files import check_lightgbm, check_nesting, check_xgboost
from edgepack_packager.sources.ubjson import deepest

NAMES = ["a", "b c", "d", "e"]
ROWS = 300


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of several libraries on few cores wait for each other most of the time."""
    with threadpool_limits(1):
        yield


def rows():
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 4)).astype(np.float32)
    x[random.random(x.shape) < 0.05] = np.nan
    return x


X = rows()
KNOWN = np.nan_to_num(X)
BINARY = (KNOWN[:, 0] + KNOWN[:, 1] > 0).astype(int)
THREE = np.digitize(KNOWN[:, 0], [-0.7, 0.7])
VALUES = KNOWN[:, 0] * 3 + KNOWN[:, 1] * KNOWN[:, 2] + 100


def load(path, columns=None):
    return load_source(path, LoadContext(path.parent, columns=columns or {}))


def convert(model, folder):
    return convert_estimator(model, LoadContext(folder), digest="sha256:0", passes=())


def differing(source, folder):
    graph, _ = run_passes(source.graph, loading_passes())
    save_model(graph, folder)
    ours = run_rows(open_folder(folder), {"input": X})
    return int(np.count_nonzero(differing_rows(source.answer({"input": X}), ours)))


@pytest.mark.framework("xgboost")
@pytest.mark.parametrize(
    ("options", "truth", "classes"),
    [
        ({"objective": "binary:logistic"}, BINARY, ("0", "1")),
        ({"objective": "binary:logistic", "base_score": 0.2}, BINARY, ("0", "1")),
        ({"objective": "multi:softprob", "num_class": 3}, THREE, ("0", "1", "2")),
        ({"objective": "multi:softmax", "num_class": 3}, THREE, ("0", "1", "2")),
        ({"objective": "reg:squarederror"}, VALUES, None),
        ({"objective": "count:poisson"}, VALUES, None),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".ubj"])
def test_xgboost_files(options, truth, classes, suffix, tmp_path):
    import xgboost

    data = xgboost.DMatrix(X, truth, feature_names=NAMES)
    booster = xgboost.train(options, data, 8)
    booster.save_model(tmp_path / f"m{suffix}")
    source = load(tmp_path / f"m{suffix}")
    assert source.classes == classes
    assert source.features == tuple(NAMES)
    assert source.framework == f"xgboost {xgboost.__version__}"
    assert differing(source, tmp_path / "g") == 0
    # what the source answers is what the library's own Booster says
    own = booster.predict(data)
    if classes is None:
        assert np.allclose(source.answer({"input": X})["variable"][:, 0], own, rtol=1e-6)
    elif own.ndim == 2:
        assert np.allclose(source.answer({"input": X})["probabilities"], own, atol=1e-6)
    elif options["objective"] == "multi:softmax":
        assert source.answer({"input": X})["label"].tolist() == own.tolist()


@pytest.mark.framework("xgboost")
def test_training_that_stopped_early_keeps_its_best_rounds(tmp_path):
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=50, early_stopping_rounds=3)
    model.fit(X, BINARY, eval_set=[(X[::2], 1 - BINARY[::2])], verbose=False)
    model.save_model(tmp_path / "m.json")
    source = load(tmp_path / "m.json")
    assert "1 of 4 rounds" in source.warnings[0]
    assert differing(source, tmp_path / "g") == 0


@pytest.mark.framework("xgboost")
@pytest.mark.parametrize(
    ("options", "truth", "code", "words"),
    [
        ({"booster": "dart"}, VALUES, "unsupported-model", "dart"),
        ({"booster": "gblinear"}, VALUES, "unsupported-model", "gblinear"),
        ({"objective": "rank:pairwise"}, BINARY, "unsupported-model", "rank:pairwise"),
        ({}, np.column_stack([VALUES, VALUES]), "not-faithful", "of 256 probing rows"),
    ],
)
def test_xgboost_without_a_faithful_form_is_refused(options, truth, code, words, tmp_path):
    import xgboost

    data = xgboost.DMatrix(KNOWN, truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xgboost.train(options, data, 3).save_model(tmp_path / "m.json")
    with pytest.raises(ConversionError, match=words) as caught:
        load(tmp_path / "m.json")
    assert caught.value.code == code


@pytest.mark.framework("xgboost")
def test_splits_by_categories_are_refused(tmp_path):
    import xgboost

    data = xgboost.DMatrix(
        np.arange(ROWS)[:, None] % 4, VALUES, feature_names=["shop"], feature_types=["c"]
    )
    xgboost.train({}, data, 3).save_model(tmp_path / "m.json")
    with pytest.raises(ConversionError, match="column shop is split by categories") as caught:
        load(tmp_path / "m.json")
    assert caught.value.code == "categorical-splits"


@pytest.mark.framework("xgboost")
@pytest.mark.framework("lightgbm")
def test_estimators_that_split_by_categories_are_refused(tmp_path):
    import lightgbm
    import pandas as pd
    import xgboost

    shop = np.array(["a", "b", "c"], object)[np.arange(ROWS) % 3]
    frame = pd.DataFrame({"shop": pd.Categorical(shop), "x": VALUES})
    for model in (
        xgboost.XGBClassifier(n_estimators=3, enable_categorical=True),
        lightgbm.LGBMClassifier(n_estimators=3, verbose=-1),
    ):
        with pytest.raises(ConversionError, match="column shop is split") as caught:
            convert(model.fit(frame, (shop == "a").astype(int)), tmp_path)
        assert caught.value.code == "categorical-splits"


@pytest.mark.framework("xgboost")
def test_xgboost_in_a_pipeline(tmp_path):
    import xgboost
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.round(np.random.default_rng(1).normal(50, 20, size=(2000, 2)), 2)
    y = np.digitize(x[:, 0], [40, 60])
    model = make_pipeline(StandardScaler(), xgboost.XGBClassifier(n_estimators=5)).fit(x, y)
    source = convert(model, tmp_path)
    assert source.classes == ("0", "1", "2")
    assert set(source.tools) >= {"xgboost", "onnxmltools", "skl2onnx"}
    settled = settle_precision(
        source, lambda session: (open_inputs(session, None, {}), {"input": x}), tmp_path / "p"
    )
    assert settled.warnings[0].endswith("inputs are float64, which leaves 0")


@pytest.mark.framework("lightgbm")
@pytest.mark.parametrize(
    ("options", "truth", "classes"),
    [
        ({"objective": "binary"}, BINARY, ("0", "1")),
        ({"objective": "multiclass", "num_class": 3}, THREE, ("0", "1", "2")),
        ({"objective": "regression"}, VALUES, None),
        ({"objective": "poisson"}, VALUES, None),
    ],
)
def test_lightgbm_files(options, truth, classes, tmp_path):
    import lightgbm

    data = lightgbm.Dataset(X, truth, feature_name=["a", "b_c", "d", "e"])
    booster = lightgbm.train({**options, "verbose": -1}, data, 8)
    booster.save_model(tmp_path / "m.txt")
    source = load(tmp_path / "m.txt", dict.fromkeys(NAMES, X[:4, 0]))
    assert source.classes == classes
    assert source.features == tuple(NAMES)
    assert differing(source, tmp_path / "g") == 0
    own = booster.predict(X)
    name = "variable" if classes is None else "probabilities"
    ours = source.answer({"input": X})[name]
    assert np.allclose(ours if own.ndim == 2 else ours[:, -1], own)


@pytest.mark.framework("lightgbm")
@pytest.mark.parametrize(
    ("options", "truth", "code"),
    [
        ({"objective": "mape"}, VALUES, "unsupported-model"),
        ({"objective": "regression", "reg_sqrt": True}, VALUES, "not-faithful"),
        ({"objective": "regression", "linear_tree": True}, VALUES, "not-faithful"),
        ({"objective": "binary", "sigmoid": 2.0}, BINARY, "not-faithful"),
        ({"objective": "binary", "zero_as_missing": True}, BINARY, "not-faithful"),
        ({"objective": "binary", "categories": [3]}, BINARY, "categorical-splits"),
    ],
)
def test_lightgbm_without_a_faithful_form_is_refused(options, truth, code, tmp_path):
    import lightgbm

    x = KNOWN.copy()
    x[:, 3] = np.arange(ROWS) % 4
    categories = options.get("categories", "auto")
    data = lightgbm.Dataset(x, truth, categorical_feature=categories)
    lightgbm.train({**options, "verbose": -1}, data, 8).save_model(tmp_path / "m.txt")
    with pytest.raises(ConversionError) as caught:
        load(tmp_path / "m.txt")
    assert caught.value.code == code


@pytest.mark.framework("lightgbm")
def test_lightgbm_keeps_texts_as_labels(tmp_path):
    import lightgbm

    labels = np.array(["low", "mid", "top"])[THREE]
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, labels)
    source = convert(model, tmp_path)
    assert source.classes == ("low", "mid", "top")
    assert source.features is None
    assert differing(source, tmp_path / "g") == 0


@pytest.mark.framework("lightgbm")
def test_a_damaged_lightgbm_file_is_refused_before_the_library_walks_it(tmp_path):
    import lightgbm

    data = lightgbm.Dataset(X, BINARY)
    booster = lightgbm.train({"objective": "binary", "verbose": -1}, data, 5)
    booster.save_model(tmp_path / "m.txt")
    whole = (tmp_path / "m.txt").read_bytes()
    check_lightgbm(whole, "m.txt")
    child = whole.index(b"left_child=") + len(b"left_child=")
    end = whole.index(b" ", child)
    for damaged in (
        whole[: whole.index(b"Tree=2")] + b"end of trees\n",
        whole[:child] + b"9" * (end - child) + whole[end:],
        whole[:child] + b"0".rjust(end - child, b"0") + whole[end:],
        whole.replace(b"split_feature=", b"split_feature=9 ", 1),
        whole.replace(b"max_feature_idx=3", b"max_feature_idx=0"),
        whole.replace(b"tree_sizes=", b"tree_seizes="),
    ):
        with pytest.raises(ModelSourceError, match="damaged") as caught:
            check_lightgbm(damaged, "m.txt")
        assert caught.value.code == "unreadable-model"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("m.json", b'{"a": 1}', "model-type"),
        ("m.json", b"", "model-type"),
        ("m.ubj", b"hello", "model-type"),
        ("m.txt", b"hello", "model-type"),
        ("m.txt", b"tree\nnum_class=1\n", "model-type"),
        ("m.json", b'{"learner": ' + b"[" * 100_000, "unreadable-model"),
        ("m.ubj", b"{L\0\0\0\0\0\0\0\x07learner" + b"[" * 100_000, "unreadable-model"),
        ("m.ubj", b"{learner", "unreadable-model"),
        ("m.txt", b"tree\nversion=v4\n\nend of trees\n", "unreadable-model"),
    ],
)
def test_other_files_of_these_names_are_refused(name, content, code, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelSourceError) as caught:
        load(tmp_path / name)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.json", b'{"learner": {}}'),
        ("m.txt", b"tree\nmax_feature_idx=0\ntree_sizes=\n\nend of trees\n"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelSourceError, match=r"reading m\..* needs .*\[boosting\]") as caught:
        load(tmp_path / name)
    assert caught.value.code == "missing-extra"


def xgboost_tree(**changes):
    tree = {"left_children": [1, -1, -1], "right_children": [2, -1, -1], "split_indices": [0, 0, 0]}
    return {
        "learner": {
            "learner_model_param": {"num_feature": "2"},
            "gradient_booster": {"model": {"trees": [{**tree, **changes}]}},
        }
    }


def test_crooked_trees_of_xgboost_are_refused():
    check_xgboost(xgboost_tree(), "m.json")
    for changes in (
        {"left_children": [0, -1, -1]},
        {"left_children": [2, -1, -1]},
        {"right_children": [7, -1, -1]},
        {"split_indices": [2, 0, 0]},
    ):
        with pytest.raises(ModelSourceError, match="tree 0"):
            check_xgboost(xgboost_tree(**changes), "m.json")


def length(n):
    return b"L" + struct.pack(">q", n)


@pytest.mark.parametrize(
    ("raw", "depth"),
    [
        (b"Z", 0),
        (b"{}", 1),
        (b"{" + length(1) + b"aT}", 1),
        (b"[[][Z]]", 2),
        (b"[#" + length(2) + b"[]{}", 2),
        (b"[#" + length(0), 1),
        (b"{" + length(1) + b"a[$d#" + length(2) + b"[[[[{{{{" + length(1) + b"bZ}", 1),
        (b"[S" + length(2) + b"[[]", 1),
    ],
)
def test_the_depth_of_ubjson(raw, depth):
    assert deepest(raw, 64) == depth


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[", b"Q", b"{" + length(99), b"S" + length(-1), b"[$Q#"]
)
def test_ubjson_that_is_none_is_refused(raw):
    with pytest.raises(ValueError, match="byte"):
        deepest(raw, 64)


def test_nesting_ends_the_look():
    with pytest.raises(ModelSourceError, match="64 levels"):
        check_nesting(b"{" + length(7) + b"learner" + b"[" * 1_000_000, "m.ubj")
