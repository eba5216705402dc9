from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgepack_contract.description import SessionOptions
from edgepack_runtime.inference.errors import ModelLoadError, ModelRunError
from edgepack_runtime.inference.session import (
    MOST_BOUND_BYTES,
    TensorInfo,
    open_session,
    trim_memory,
)


def test_a_model_opens_by_path_and_runs(make_variant):
    session = open_session(make_variant("v") / "model.onnx", SessionOptions())
    assert session.inputs == (TensorInfo("x", "float32", ("batch", 4)),)
    assert [info.name for info in session.outputs] == ["label", "probabilities"]
    answer = session.run({"x": np.zeros((3, 4), np.float32)})
    np.testing.assert_allclose(answer["probabilities"], np.full((3, 3), 1 / 3), rtol=1e-6)
    assert answer["label"].dtype == np.int64


@pytest.mark.parametrize("spinning", [False, True])
@pytest.mark.parametrize("prepacking", [False, True])
def test_options_reach_onnxruntime(make_variant, spinning, prepacking):
    options = SessionOptions(intra_op_threads=2, spinning=spinning, prepacking=prepacking)
    session = open_session(
        make_variant("v") / "model.onnx", options, default_threads=1, arena=False
    )
    given = session._session.get_session_options()
    assert given.intra_op_num_threads == 2
    assert given.inter_op_num_threads == 1
    assert given.enable_cpu_mem_arena is False
    assert given.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))
    assert given.get_session_config_entry("session.disable_prepacking") == str(int(not prepacking))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 not a model"])
def test_what_is_not_a_model_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        open_session(path, SessionOptions())
    assert caught.value.code == "load-failed"
    assert "\n" not in str(caught.value)
    # what a slot remembers is short, and a path would leave no room for the reason
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelLoadError):
        open_session(tmp_path / "model.onnx", SessionOptions())


def test_outputs_that_are_no_tensors_are_refused(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["s"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [sequence],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadError, match="'s' is a seq"):
        open_session(path, SessionOptions())


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": np.zeros((1, 5), np.float32)},
        {"x": np.zeros((1, 4), np.float64)},
        {},
        {"y": np.zeros((1, 4), np.float32)},
        {"x": "text"},
    ],
)
@pytest.mark.parametrize("bound", [False, True])
def test_a_failing_run_is_one_kind_of_error(make_variant, feeds, bound):
    session = open_session(make_variant("v") / "model.onnx", SessionOptions())
    if bound:
        session.bind({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(ModelRunError):
        session.run(feeds)


def rows(count, seed=0, *, size=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(size, 4)).astype(np.float32)} for _ in range(count)]


def bits(outputs):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in outputs.items()}


def test_bound_runs_give_what_others_give_and_keep_nothing(make_variant):
    path = make_variant("v") / "model.onnx"
    plain, bound = (open_session(path, SessionOptions()) for _ in range(2))
    given = rows(20) + rows(3, size=2)
    bound.bind(given[0])
    assert bound._bound is not None
    answers = [bound.run(feeds) for feeds in given]
    for feeds in given:
        feeds["x"].setflags(write=False)
    assert [bits(one) for one in answers] == [bits(plain.run(feeds)) for feeds in given]
    assert [bits(bound.run(feeds)) for feeds in given] == [bits(one) for one in answers]


def test_bound_runs_of_several_threads_do_not_mix(make_variant):
    session = open_session(make_variant("v") / "model.onnx", SessionOptions())
    given = rows(400)
    session.bind(given[0])
    expected = [bits(session.run(feeds)) for feeds in given]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda feeds: bits(session.run(feeds)), given))
    assert found == expected


def test_an_output_of_another_shape_than_before_comes_whole(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    session = open_session(path, SessionOptions())
    session.bind({"x": np.array([[1, 0, 2, 0]], np.float32)})
    answer = session.run({"x": np.array([[0, 0, 0, 3]], np.float32)})
    np.testing.assert_array_equal(answer["y"], [[0], [3]])


def test_what_is_large_is_not_bound(make_variant):
    session = open_session(make_variant("v") / "model.onnx", SessionOptions())
    session.bind({"x": np.zeros((MOST_BOUND_BYTES, 4), np.float32)})
    assert session._bound is None


def test_a_released_session_says_so(make_variant):
    session = open_session(make_variant("v") / "model.onnx", SessionOptions())
    session.bind({"x": np.zeros((1, 4), np.float32)})
    session.release()
    session.release()
    trim_memory()
    with pytest.raises(ModelRunError, match="released"):
        session.run({"x": np.zeros((1, 4), np.float32)})


def test_telemetry_of_the_vendor_is_off_before_the_import():
    code = (
        "import os, edgepack_runtime.inference.session; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True
    )
    assert out.stdout == "1\n"


def test_only_one_module_imports_onnxruntime():
    root = Path(sys.modules["edgepack_runtime.inference.session"].__file__).parents[1]
    importers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(
            line.startswith(("import onnxruntime", "from onnxruntime"))
            for line in path.read_text().splitlines()
        )
    }
    assert importers == {"inference/session.py"}
