"""Models as bytes: of whatever the format repeats too many, and files that are no model at all.

What a graph is made of is in ``test_hostile_models.py``.
"""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import hostile_graphs as hostile
import onnxruntime
import pytest
from hostile_graphs import put
from onnx import TensorProto, helper
from raw_onnx import GRAPH, deep, in_node, in_tensor, part

from edgepack_contract.limits import GIB, MIB
from edgepack_runtime.inference import outline
from edgepack_runtime.inference.errors import UnfitModelError
from edgepack_runtime.inference.outline import read_outline
from edgepack_runtime.inference.probe import probe_model

ROOT = Path(__file__).parents[3]
NODE, OUTPUT, TENSOR, PAIR = b"\x0a\0", b"\x62\0", b"\x2a\0", b"\x6a\0"
MANY = 1_000_000

TOO_MANY = {
    "tensors": (part(GRAPH, TENSOR * outline.MAX_TENSORS + TENSOR), "malformed-model"),
    "inputs of a node": (in_node(b"\x0a\0" * MANY), "model-limits"),
    "outputs of a node": (in_node(b"\x12\0" * MANY), "model-limits"),
    "graphs of a node": (in_node(part(5, b"\x5a\0" * MANY)), "model-limits"),
    "sizes": (in_tensor(b"\x08\x01" * MANY), "model-limits"),
    "sizes in one field": (in_tensor(part(1, b"\x01" * MANY)), "model-limits"),
    "places outside": (in_tensor(PAIR * MANY), "external-data"),
    "letters of an operator": (in_node(part(4, b"a" * MANY)), "model-limits"),
    "letters of a value": (in_node(part(1, "\U0001f600".encode() * MANY)), "model-limits"),
    "domains": (
        b"".join(part(8, part(1, b"%d" % number)) for number in range(1000)), "model-limits",
    ),
    "graphs in graphs": (deep(100), "model-limits"),
    "graphs in graphs in graphs": (deep(2000), "model-limits"),
    "bytes that it says": (b"\x3a\x80\x80\x80\x80\x08", "malformed-model"),
    "bytes that it says in 64 bits": (b"\x3a" + b"\xff" * 9 + b"\x01", "malformed-model"),
}  # fmt: skip
"""More than a device has reason to read, and the code of the refusal."""


@pytest.mark.parametrize(("raw", "code"), TOO_MANY.values(), ids=TOO_MANY)
def test_too_much_of_anything_is_refused_before_it_is_kept(raw, code):
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(UnfitModelError) as caught:
            read_outline(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert peak < 4 * MIB


def test_names_are_counted_by_the_memory_that_they_take(monkeypatch):
    monkeypatch.setattr(outline, "MAX_NAMES_BYTES", MIB)
    ends = b"".join(part(1, b"%06d" % number) for number in range(1000))
    with pytest.raises(UnfitModelError, match="names take more than 1048576 bytes") as caught:
        read_outline(part(GRAPH, part(1, ends) * 100))
    assert caught.value.code == "model-limits"
    # the same in the file, and nothing in memory
    read_outline(part(GRAPH, part(1, part(6, b"x" * 9000)) * 100))


def zipped(raw):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model.onnx", raw)
    return stream.getvalue()


@pytest.fixture(scope="module")
def ort_format(tmp_path_factory):
    """A good model in onnxruntime's own format."""
    path = tmp_path_factory.mktemp("ort") / "model.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        hostile.adding().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return path.read_bytes()


def of_shape(*shape):
    """It says of its input that it has a shape."""
    graph = hostile.adding()
    graph.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    return graph


def filled(size):
    """It asks for a tensor of so many elements when it is loaded."""
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [size])
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["w"]),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    return hostile.model(nodes, [shape])


def without_text():
    """Nobody reads its input, whose name is no text."""
    graph = hostile.model([helper.make_node("Add", ["w", "w"], ["y"])], [ONES])
    return graph.SerializeToString().replace(part(1, b"x"), part(1, b"\xff"))


ONES = hostile.adding().graph.initializer[0]
GOOD = hostile.adding().SerializeToString()
PROBED = {
    "text": (str(hostile.adding()).encode(), "malformed-model"),
    "a zip": (zipped(GOOD), "malformed-model"),
    "an archive behind it": (GOOD + zipped(GOOD), "malformed-model"),
    "itself behind it": (GOOD + GOOD, "malformed-model"),
    "an input of an enormous size": (of_shape(2**62, 4), "golden-mismatch"),
    "an input whose name is no text": (without_text(), "load-failed"),
    "an input whose sizes overflow": (of_shape(2**40, 2**40), "load-failed"),
    "an enormous tensor when it loads": (filled(2**44), "load-failed"),
    "a million nodes": (part(GRAPH, NODE * MANY), "model-limits"),
    "a hundred thousand outputs": (part(GRAPH, OUTPUT * 100_000), "model-limits"),
}  # fmt: skip


@pytest.mark.parametrize(("graph", "code"), PROBED.values(), ids=PROBED)
def test_the_child_says_why_and_nothing_else_is_said(variant, capfd, graph, code):
    result = probe_model(put(variant, graph), timeout_s=30, memory_bytes=512 * MIB, rounds=0)
    assert result.code == code, result
    assert result.words
    assert capfd.readouterr() == ("", "")


def test_the_format_of_onnxruntime_is_not_loaded(variant, ort_format):
    for raw in (ort_format, ort_format[:64] + os.urandom(512)):
        result = probe_model(put(variant, raw), timeout_s=30, rounds=0)
        assert result.code == "malformed-model", result
        assert "onnxruntime's own format" in result.words


@pytest.mark.parametrize(
    ("kind", "code"),
    [("link", "load-failed"), ("folder", "malformed-model"), ("fifo", "malformed-model"),
     ("endless", "load-failed"), ("too large", "malformed-model")],
)  # fmt: skip
def test_a_model_is_a_file_of_at_most_2_gib(variant, tmp_path, kind, code):
    put(variant, GOOD)
    path = variant / "model.onnx"
    path.unlink()
    (tmp_path / "good").write_bytes(GOOD)
    {"link": lambda: path.symlink_to(tmp_path / "good"), "folder": path.mkdir,
     "fifo": lambda: os.mkfifo(path), "endless": lambda: path.symlink_to("/dev/zero"),
     "too large": lambda: _sparse(path)}[kind]()  # fmt: skip
    try:
        result = probe_model(variant, timeout_s=30, rounds=0)
        assert result.code == code, result
    finally:
        path.rmdir() if kind == "folder" else path.unlink()


def _sparse(path):
    path.touch()
    os.truncate(path, 2 * GIB)


def test_a_small_model_altered_at_every_byte_is_refused_or_loads(variant):
    """No other end: onnxruntime raises five types for these, and some of them load."""
    put(variant, GOOD)
    script = ROOT / "tests" / "support" / "flipped_models.py"
    done = subprocess.run(
        [sys.executable, script, variant, "7"],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b""), done
    found = json.loads(done.stdout)
    assert sum(found.values()) == 2 * len((variant / "model.onnx").read_bytes())
    assert min(found["refused"], found["failed"], found["loaded"]) > 0
