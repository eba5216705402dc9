from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack_contract.description import Budgets
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, load_golden
from edgepack_runtime.inference.probe import ProbeResult, probe_model, verdict
from edgepack_runtime.inference.trial import measure
from edgepack_runtime.inference.variant import read_description

MIB = 1024 * 1024


def test_a_good_model_passes_and_is_measured(make_variant):
    result = probe_model(make_variant("v"), timeout_s=60)
    assert result.ok, result.words
    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms
    assert 10 * MIB < result.peak_bytes < 1024 * MIB
    assert 0 < result.model_bytes < result.peak_bytes


def test_another_model_than_the_golden_rows_were_made_with(make_variant):
    folder, other = make_variant("v", seed=1), make_variant("other", seed=2)
    (folder / "model.onnx").write_bytes((other / "model.onnx").read_bytes())
    result = probe_model(folder, timeout_s=60)
    assert result.code == "golden-mismatch"
    assert "'probabilities'" in result.words


def test_golden_rows_that_cannot_be_read(make_variant):
    folder = make_variant("v")
    (folder / "golden.safetensors").write_bytes(b"nothing")
    assert probe_model(folder, timeout_s=60).code == "golden-mismatch"


@pytest.mark.parametrize(
    ("name", "code"), [("model.onnx", "malformed-model"), ("edgepack.json", "load-failed")]
)
def test_what_does_not_load(make_variant, name, code):
    folder = make_variant("v")
    (folder / name).write_bytes(b"nothing")
    result = probe_model(folder, timeout_s=60)
    assert result.code == code
    assert name in result.words


def test_a_model_over_its_latency_budget(make_variant):
    result = probe_model(make_variant("v", budgets=Budgets(latency_ms=1e-6)), timeout_s=60)
    assert result.code == "latency-budget"
    assert "1e-06 ms allowed" in result.words
    assert result.p95_ms > 0


def test_a_model_over_its_memory_budget(make_variant):
    result = probe_model(make_variant("v", budgets=Budgets(memory_bytes=MIB)), timeout_s=60)
    assert result.code == "probe-memory"
    assert "its budget" in result.words


def greedy_graph() -> bytes:
    """Adds a 1 GiB tensor that exists only while it runs: the file itself is tiny."""
    shape = numpy_helper.from_array(np.array([256, 1024, 1024], np.int64), "shape")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0, 1], keepdims=0),
        helper.make_node("Expand", ["mean", "shape"], ["big"]),
        helper.make_node("ReduceMax", ["big"], ["top"], keepdims=0),
        helper.make_node("Add", ["x", "top"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(model.SerializeToString())


def endless_graph() -> bytes:
    """A loop of 2**62 rounds: it is valid, loads, and never answers."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["value", "value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "yes", "x"], ["y"], body=body)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(np.array(2**62, np.int64), "rounds"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def with_graph(folder, graph: bytes):
    """The variant with another graph that has the one output y."""
    (folder / "model.onnx").write_bytes(graph)
    nodes = onnx.load_from_string(graph).graph.node
    inside = [one for node in nodes for item in node.attribute for one in item.g.node]
    inputs = load_golden(folder / "golden.safetensors").inputs
    (folder / "golden.safetensors").write_bytes(golden_bytes(GoldenRows(inputs, inputs | {})))
    description = read_description(folder)
    output = msgspec.structs.replace(
        description.outputs[1], name="y", shape=["batch", 4], labels=None, kind="values"
    )
    operators = sorted({f"ai.onnx:{node.op_type}" for node in (*nodes, *inside)})
    changed = msgspec.structs.replace(description, outputs=[output], operators=operators)
    (folder / "edgepack.json").write_bytes(changed.to_bytes())
    return folder


def test_a_model_that_wants_more_memory_than_there_may_be(make_variant):
    folder = with_graph(make_variant("v"), greedy_graph())
    result = probe_model(folder, timeout_s=60, memory_bytes=256 * MIB)
    assert result.code == "probe-memory", result.words


def test_a_model_that_never_answers(make_variant):
    result = probe_model(with_graph(make_variant("v"), endless_graph()), timeout_s=3)
    assert result.code == "probe-timeout"
    assert "3 s" in result.words


def test_the_child_by_hand_prints_one_line(make_variant):
    command = [sys.executable, "-m", "edgepack_runtime.inference.child", str(make_variant("v"))]
    out = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (out.returncode, out.stdout.count("\n")) == (0, 1)
    assert msgspec.json.decode(out.stdout, type=ProbeResult).ok
    command[-1] += "-missing"
    out = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (out.returncode, out.stdout.count("\n")) == (1, 1)
    assert msgspec.json.decode(out.stdout, type=ProbeResult).code == "load-failed"


def test_a_folder_that_is_not_there(tmp_path):
    assert probe_model(tmp_path / "nothing", timeout_s=60).code == "load-failed"


PASSED = msgspec.json.encode(ProbeResult(code="", p50_ms=1.0))
FAILED = msgspec.json.encode(ProbeResult(code="golden-mismatch", words="differs"))


@pytest.mark.parametrize(
    ("returncode", "out", "code"),
    [
        (0, PASSED, ""),
        (1, FAILED, "golden-mismatch"),
        (0, FAILED, "probe-crashed"),
        (1, PASSED, "probe-crashed"),
        (0, b"", "probe-crashed"),
        (1, b"Traceback", "probe-crashed"),
        (1, b'{"code":"unknown"}', "probe-crashed"),
        (-signal.SIGSEGV, PASSED, "probe-crashed"),
        (-signal.SIGABRT, b"", "probe-crashed"),
        (-signal.SIGKILL, b"", "probe-memory"),
        (-signal.SIGALRM, b"", "probe-timeout"),
        (-signal.SIGXCPU, b"", "probe-cpu"),
        (-200, b"", "probe-crashed"),
    ],
)
def test_every_end_of_a_child_has_a_verdict(returncode, out, code):
    result = verdict(returncode, out, b"Traceback\nImportError: no")
    assert result.code == code
    assert result.ok == (not code)
    assert bool(result.words) == (not result.ok)


def test_the_parent_imports_neither_numpy_nor_onnxruntime():
    code = (
        "import sys, edgepack_runtime.inference.probe\n"
        "print([m for m in ('numpy', 'onnxruntime', 'safetensors') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout == "[]\n"


def test_the_quietest_round_counts():
    now = 0.0
    durations = iter([0.5] * 100)

    def clock() -> float:
        return now

    def run(number: int) -> None:
        nonlocal now
        now += next(durations)

    latency = measure(run, clock)
    assert latency.p50_ms == latency.p99_ms == 500.0


def test_the_child_cannot_write_without_end(make_variant):
    code = (
        "import os; from edgepack_runtime.inference.confinement import confine\n"
        "confine(seconds=30, parent=os.getppid())\n"
        "import resource as r; print(*(r.getrlimit(getattr(r, 'RLIMIT_' + name))[0]"
        " for name in ('FSIZE', 'CORE', 'NOFILE', 'CPU')))\n"
        "print(open('/proc/self/oom_score_adj').read(), os.listdir('.'))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    cores = resource.getrlimit(resource.RLIMIT_CPU)[0]
    assert out.stdout.split() == [str(MIB), "0", "64", str(30 * os.cpu_count()), "1000", "[]"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != MIB
    assert cores == resource.RLIM_INFINITY
