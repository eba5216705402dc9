"""Trees whose thresholds lie between floats: rows counted, and float64 taken where it helps."""

from dataclasses import replace

import numpy as np
import pytest
import skops.io
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from edgepack_packager import Recipe, build
from edgepack_packager.evidence.decisions import open_inputs
from edgepack_packager.sources import LoadContext
from edgepack_packager.sources.flips import differing_rows, settle_precision
from edgepack_packager.sources.from_sklearn import convert_estimator

ROWS = 400


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of several libraries on few cores wait for each other most of the time."""
    with threadpool_limits(1):
        yield


def near_neighbours():
    """Two values that are neighbours in float64 and one float: only float64 tells them apart."""
    low = 0.1
    high = np.nextafter(low, 1.0)
    return np.where(np.arange(ROWS) % 2 == 0, low, high)[:, None]


def settled(model, x, folder):
    folder.mkdir(exist_ok=True)
    source = convert_estimator(model, LoadContext(folder), digest="sha256:0", passes=())
    return settle_precision(
        source, lambda session: (open_inputs(session, None, {}), {"input": x}), folder / "p"
    )


def test_thresholds_between_neighbours_take_float64(tmp_path):
    x = near_neighbours()
    y = np.arange(ROWS) % 2 * 100.0
    model = HistGradientBoostingRegressor(min_samples_leaf=1, max_iter=5).fit(x, y)
    assert len(set(model.predict(x))) == 2
    source = settled(model, x, tmp_path)
    assert source.passes[-1] == "float64"
    (warning,) = source.warnings
    assert warning.startswith("200 of 400 rows take another branch with inputs in float32 than in")
    assert warning.endswith(f"{source.framework}; inputs are float64, which leaves 0")


def test_a_forest_behind_an_imputer_and_a_scaler_compares_as_its_framework_does(tmp_path):
    # the scaler's float64 results are cast before trees compare them; scaled floats are others
    x = np.round(np.random.default_rng(0).normal(50, 20, size=(2000, 2)), 2)
    x[::7, 1] = np.nan
    forest = RandomForestClassifier(20, random_state=0)
    model = make_pipeline(SimpleImputer(), StandardScaler(), forest).fit(x, x[:, 0] > 50)
    source = settled(model, x, tmp_path)
    assert source.warnings[0].endswith("inputs are float64, which leaves 0")


@pytest.mark.parametrize("model", [GradientBoostingRegressor(n_estimators=5), LinearRegression()])
def test_what_flips_nothing_stays_in_float32(model, tmp_path):
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    source = settled(model.fit(x, x[:, 0]), x, tmp_path)
    assert source.warnings == ()
    assert "float64" not in source.passes


def test_float64_that_does_not_help_is_not_taken(tmp_path):
    x = near_neighbours()
    model = HistGradientBoostingRegressor(min_samples_leaf=1, max_iter=5)
    source = convert_estimator(
        model.fit(x, np.arange(ROWS) % 2), LoadContext(tmp_path), digest="sha256:0", passes=()
    )
    narrow = replace(source, wider=lambda: source.graph)
    found = settle_precision(
        narrow, lambda session: (open_inputs(session, None, {}), {"input": x}), tmp_path / "p"
    )
    assert "float64" not in found.passes
    assert "float64 leaves 200, so inputs stay float32" in found.warnings[0]


@pytest.mark.parametrize(
    ("theirs", "ours", "rows"),
    [
        (np.array([1, 2, 3]), np.array([1, 2, 4]), [2]),
        (np.array(["a", "b"]), np.array(["a", "c"], object), [1]),
        (np.array([[1.0], [1e6]]), np.array([[1.0], [1e6 + 1]], np.float32), []),
        (np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.1]]), [1]),
        (np.array([[np.nan], [0.0]]), np.array([[np.nan], [1e-6]]), []),
        (np.array([[0.5], [0.5]]), np.array([[np.nan], [0.5]]), [0]),
    ],
)
def test_rounding_is_no_difference(theirs, ours, rows):
    assert np.flatnonzero(differing_rows({"y": theirs}, {"y": ours})).tolist() == rows


def test_a_build_says_it_and_asks_for_float64(tmp_path):
    x = near_neighbours()
    y = np.arange(ROWS) % 2 * 100.0
    model = HistGradientBoostingRegressor(min_samples_leaf=1, max_iter=5).fit(x, y)
    skops.io.dump(model, tmp_path / "m.skops")
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    result = build(
        Recipe(
            model=tmp_path / "m.skops", name="m", version="1.0.0",
            data=tmp_path / "rows.npz", label="y",
        )
    )  # fmt: skip
    assert any("which leaves 0" in warning for warning in result.warnings)
