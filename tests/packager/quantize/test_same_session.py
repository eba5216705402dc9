"""What judges a candidate is what serves it: one level of optimisation, the target's threads."""

from types import SimpleNamespace

import pytest
from tests.packager.models import mlp, rows
from tests.packager.quantize.made import STATIC, made

from edgepack_contract.description import SessionOptions
from edgepack_packager.graphs import running
from edgepack_packager.graphs.running import open_folder, save_model
from edgepack_packager.search.examining import answers
from edgepack_packager.search.timing import Pace, take_turns
from edgepack_runtime.inference import session as serving


@pytest.fixture
def opened(monkeypatch):
    """The options and the level of every session that is opened."""
    seen = []

    def recording(path, options, **others):
        seen.append((options.intra_op_threads, others.get("optimisation", "all")))
        return serving.open_session(path, options, **others)

    monkeypatch.setattr(running, "open_session", recording)
    return seen


def test_answers_are_judged_with_the_optimisation_of_the_device(tmp_path, opened):
    save_model(made(mlp(), STATIC, {"x": rows()}), tmp_path)
    opened.clear()  # what calibration opened
    exam = SimpleNamespace(feeds={"x": rows()}, steps=None)
    answers(tmp_path, STATIC, exam, lambda: None)
    assert opened == [(1, "all")]
    # the device names no level, and takes the default of the same function
    assert serving.open_session.__kwdefaults__["optimisation"] == "all"


def test_candidates_are_timed_with_the_targets_threads(tmp_path, opened):
    folders = {"fp32": tmp_path / "a", "int8": tmp_path / "b"}
    for folder in folders.values():
        save_model(mlp(), folder)
    pace = Pace(rounds=1, runs=2, seconds=0.0)
    take_turns("fp32", folders, [{"x": rows(n=1)}], SessionOptions(intra_op_threads=2), pace)
    assert opened == [(2, "all"), (2, "all")]


def test_the_level_matters_to_int8(tmp_path):
    """Fused int8 kernels round elsewhere than the operators they stand for (onnxruntime#11576)."""
    save_model(made(mlp(), STATIC, {"x": rows()}), tmp_path)
    one, two = (
        open_folder(tmp_path, optimisation=level).run({"x": rows()})["probabilities"]
        for level in ("off", "all")
    )
    assert (one != two).any()
