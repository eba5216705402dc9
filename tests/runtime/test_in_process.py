"""A model in the caller's own process answers and counts as the daemon does."""

from __future__ import annotations

import doctest
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from bundle_samples import PUBLISHER, fixed_key
from world_bundles import LABELS, ROW, tiny_bundle

from edgepack_contract.bundle import BundleFile
from edgepack_contract.errors import BundleError, ConfigError, DocumentError, SourceError
from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.layout import unpack
from edgepack_runtime import Model
from edgepack_runtime.inference.errors import (
    BadRequestError,
    InputError,
    ModelRunError,
    NonfiniteInputError,
    ShapeError,
)

DOC = Path(__file__).parents[2] / "docs" / "in-process.md"
NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "tiny.edgepack"
    tiny_bundle(path, "1.0.0")
    return path


@pytest.fixture(scope="module")
def loaded(bundle):
    with Model(bundle, unsigned=True) as model:
        yield model


@pytest.fixture
def model(loaded):
    loaded.window()
    return loaded


ARRAY = np.array([ROW], np.float32)


@pytest.mark.parametrize(
    "inputs",
    [ARRAY, {"x": ARRAY}, {"x": [ROW]}, [ROW], (ROW,), ARRAY.astype(np.float64)],
    ids=["array", "by name", "lists by name", "rows", "a tuple", "float64"],
)
def test_every_form_of_the_same_input_gives_the_same(model, inputs):
    outputs = model.predict(inputs)
    assert outputs["p"].shape == (1, 3)
    assert outputs["p"].tobytes() == model.predict(ARRAY)["p"].tobytes()


def test_rows_are_labels_and_probabilities(model):
    (one, two) = model.predict_rows([ROW, [0.0, 0.0, 0.0, 0.0]])
    assert one["label"] == LABELS[int(model.predict(ARRAY)["p"].argmax())]
    assert list(one["probabilities"]) == LABELS
    assert sum(two["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)


def test_rows_may_be_keyed_by_feature(model):
    names = [f"x[{place}]" for place in range(4)]
    named = [dict(zip(names, ROW, strict=True))]
    assert model.predict_rows(named) == model.predict_rows([ROW])


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (np.zeros((1, 5), np.float32), ShapeError, "given [1, 5]"),
        ({"y": ARRAY}, BadRequestError, "'y' is not one of the model's: x"),
        ({}, BadRequestError, "'x' is missing"),
        ([], ShapeError, "no rows"),
        ([["a", 1, 2, 3]], BadRequestError, "expected float32"),
        ([{"x": 1}, [1]], BadRequestError, "all lists or all dicts"),
        (np.full((1, 4), np.nan, np.float32), NonfiniteInputError, "NaN"),
    ],
)
def test_what_does_not_fit_is_refused_and_counted(model, inputs, error, words):
    with pytest.raises(InputError, match=r".+") as caught:
        model.predict(inputs)
    assert isinstance(caught.value, error)
    assert words in str(caught.value)
    window = model.window()
    assert (window.n, window.errors, list(window.errors_by_kind)) == (0, 1, [error.kind])


def test_windows_hold_what_was_asked_since_the_last(model):
    for _ in range(5):
        model.predict(ARRAY)
    model.predict_rows([ROW, ROW])
    window = model.window()
    assert (window.n, window.rows, window.errors) == (6, 7, 0)
    assert sum(window.outputs.classes) == 7
    assert (window.slot, window.bundle) == (model.name, model.digest)
    assert model.window().n == 0


def test_threads_may_share_it_and_no_request_is_lost(model):
    def ask() -> None:
        for _ in range(200):
            model.predict(ARRAY)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.window().n == 800


def test_a_closed_model_says_so(bundle):
    model = Model(bundle, unsigned=True)
    model.close()
    model.close()
    with pytest.raises(ModelRunError) as caught:
        model.predict(ARRAY)
    assert caught.value.code == "released"


def test_a_folder_of_a_variant_is_taken_when_nobody_vouches_for_it(bundle, tmp_path, model):
    with BundleFile.open(bundle) as file:
        folder = tmp_path / "tree" / unpack(file, tmp_path / "tree").variants[0].name
    with Model(folder, unsigned=True) as found:
        assert found.predict(ARRAY)["p"].tobytes() == model.predict(ARRAY)["p"].tobytes()
    with pytest.raises(ConfigError) as caught:
        Model(folder, keyring=_keyring(tmp_path), owner=OWNER.public.fingerprint)
    assert caught.value.code == "unsigned"


OWNER, OTHER = fixed_key(40), fixed_key(41)


def _keyring(folder: Path, publisher=PUBLISHER) -> Path:
    key = Publisher(key=publisher.public.pem.decode(), names=["*"])
    path = folder / "keyring.json"
    made = make_keyring(OWNER, version=1, epoch=1, publishers=[key], fleets=[])
    path.write_bytes(made)
    return path


def test_signatures_are_checked(bundle, tmp_path):
    owner = OWNER.public.fingerprint
    with Model(bundle, keyring=_keyring(tmp_path), owner=owner) as model:
        assert model.predict(ARRAY)["p"].shape == (1, 3)
    with pytest.raises(DocumentError):
        Model(bundle, keyring=_keyring(tmp_path), owner=OTHER.public.fingerprint)
    with pytest.raises(BundleError) as caught:
        Model(bundle, keyring=_keyring(tmp_path, OTHER), owner=owner)
    assert caught.value.code == "unknown-publisher"


@pytest.mark.parametrize(
    "trust",
    [{}, {"owner": "00"}, {"keyring": "k"}, {"keyring": "k", "owner": "00", "unsigned": True}],
    ids=["nothing", "an owner alone", "a keyring alone", "both"],
)
def test_whom_to_trust_must_be_said(bundle, trust):
    with pytest.raises(ConfigError) as caught:
        Model(bundle, **trust)
    assert caught.value.code == "unsigned"
    assert "unsigned=True" in str(caught.value)


def test_no_file_and_no_variant(tmp_path):
    for path in (tmp_path / "none.edgepack", tmp_path):
        with pytest.raises(SourceError) as caught:
            Model(path, unsigned=True)
        assert caught.value.code == "no-file"


def test_importing_the_package_loads_nothing():
    code = (
        "import sys, edgepack_runtime; "
        "assert not {'numpy', 'onnxruntime', 'uvicorn'} & set(sys.modules); "
        "edgepack_runtime.Model; assert 'numpy' in sys.modules and 'uvicorn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        __import__("edgepack_runtime").Modell  # noqa: B018


def test_the_page_says_what_happens(bundle):
    page = DOC.read_text(encoding="utf-8")
    found = doctest.DocTestParser().get_doctest(page, {"BUNDLE": bundle}, "page", str(DOC), 0)
    assert len(found.examples) > 4
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(found).failed == 0
