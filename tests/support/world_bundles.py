"""Small bundles that really run: a classifier of four inputs and three classes, signed or not."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from bundle_samples import PUBLISHER, describe
from onnx import TensorProto, helper, numpy_helper

from edgepack_contract.description import (
    Budgets,
    Description,
    Golden,
    Platform,
    SessionOptions,
    TensorSpec,
)
from edgepack_contract.hardware import this_machine
from edgepack_contract.keys import PrivateKey
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, run_rows
from edgepack_runtime.inference.session import open_session

MODEL = "tiny"
LABELS = ["ok", "worn", "broken"]
ROW = [0.5, -1.0, 2.0, 0.25]
_ROWS = 8


@functools.cache
def model_files(version: str) -> dict[str, bytes]:
    """Graph and golden rows; the weights differ from version to version."""
    rng = np.random.default_rng(list(version.encode()))
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    return files_of(weights, rng.normal(size=(_ROWS, 4)).astype(np.float32))


def files_of(weights: np.ndarray, rows: np.ndarray, *, logarithm: bool = False) -> dict[str, bytes]:
    """Graph and golden rows of softmax(x W), or of softmax(log(x) W)."""
    graph = _graph(weights, logarithm=logarithm)
    inputs = {"x": rows}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(graph)
        answers = run_rows(open_session(path, SessionOptions()), inputs, len(rows))
    return {"model.onnx": graph, "golden.safetensors": golden_bytes(GoldenRows(inputs, answers))}


def tiny_description(version: str, **changes: object) -> Description:
    """What the bundle says of that graph, for the machine that the tests run on."""
    machine = this_machine(onnxruntime="1.31.0")
    fields: dict[str, object] = {
        "name": MODEL,
        "version": version,
        "inputs": [TensorSpec(name="x", dtype="float32", shape=["n", 4])],
        "outputs": [
            TensorSpec(
                name="p", dtype="float32", shape=["n", 3], kind="probabilities", labels=LABELS
            )
        ],
        "platform": Platform(architecture=machine.architecture),
        "operators": ["ai.onnx:Gemm", "ai.onnx:Softmax"],
        "budgets": Budgets(),
        "golden": Golden(rows=_ROWS, atol=1e-4, rtol=1e-3, top1_agreement=1.0, derived="test"),
    }
    return describe(**(fields | changes))


def tiny_bundle(
    path: Path, version: str, *, signer: PrivateKey | None = PUBLISHER, **changes: object
) -> str:
    """Write a bundle and return its digest; ``changes`` are those of its description."""
    description = tiny_description(version, **changes)
    content = BundleContent([VariantContent(description, model_files(version))])
    return write_bundle(path, content, signer=signer)


def ranked_bundle(
    path: Path, version: str, *, wrong: Collection[str] = (), signer: PrivateKey | None = PUBLISHER
) -> str:
    """Write a bundle of the variants fast, alt1 and fp32; the ``wrong`` ones answer otherwise."""
    good, other = model_files(version), model_files(f"{version}-other")
    variants = [
        VariantContent(
            tiny_description(version, variant=name),
            good | ({"model.onnx": other["model.onnx"]} if name in wrong else {}),
        )
        for name in ("fast", "alt1", "fp32")
    ]
    return write_bundle(path, BundleContent(variants), signer=signer)


def _graph(weights: np.ndarray, *, logarithm: bool) -> bytes:
    nodes = [
        *([helper.make_node("Log", ["x"], ["l"])] if logarithm else []),
        helper.make_node("Gemm", ["l" if logarithm else "x", "W"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
