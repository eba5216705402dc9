"""Bundles around any small graph, with golden rows that the graph itself answered."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bundle_samples import describe
from onnx import TensorProto, helper, numpy_helper

from edgepack_contract.description import Budgets, Golden, Platform, SessionOptions, TensorSpec
from edgepack_contract.hardware import this_machine
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, run_rows
from edgepack_runtime.inference.session import open_session

_KINDS = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64,
    "str": TensorProto.STRING, "bool": TensorProto.BOOL, "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8, "int16": TensorProto.INT16, "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
}  # fmt: skip


def graph(
    nodes: list, inputs: list[TensorSpec], outputs: list[TensorSpec], **weights: Any
) -> bytes:
    """A graph whose inputs and outputs are as described."""
    tensors = [[helper.make_tensor_value_info(one.name, _KINDS[one.dtype], one.shape)
                for one in side] for side in (inputs, outputs)]  # fmt: skip
    made = helper.make_graph(
        nodes,
        "g",
        *tensors,
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def graph_bundle(
    path: Path, raw: bytes, rows: dict[str, np.ndarray], *, signer: Any = None, **changes: Any
) -> str:
    """Write a bundle of one variant; ``changes`` are those of its description."""
    count = len(next(iter(rows.values())))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        model.write_bytes(raw)
        answers = run_rows(open_session(model, SessionOptions()), rows, count)
    golden = golden_bytes(GoldenRows(rows, answers))
    machine = this_machine(onnxruntime="1.31.0")
    fields = {
        "name": "sample",
        "platform": Platform(architecture=machine.architecture),
        "budgets": Budgets(),
        "golden": Golden(rows=count, atol=1e-4, rtol=1e-3, top1_agreement=1.0, derived="test"),
    } | changes
    files = {"model.onnx": raw, "golden.safetensors": golden}
    return write_bundle(
        path, BundleContent([VariantContent(describe(**fields), files)]), signer=signer
    )
