"""Variants whose model gives back what it is given, for every type that edgepack serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bundle_samples import describe
from graph_bundles import graph
from onnx import helper

from edgepack_contract.description import Budgets, FileEntry, Golden, SessionOptions, TensorSpec
from edgepack_contract.digest import sha256_digest
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, run_rows
from edgepack_runtime.inference.session import open_session

ECHO_DTYPES = (
    "bool", "str", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip

TEXTS = np.array([["ä", ""], ["日本", "x" * 300]], object)


def echo_input(dtype: str) -> str:
    """The input of a type; its output is the same with ``_out``."""
    return f"x_{dtype}"


def echo_values(dtype: str, shape: tuple[int, ...] = (2, 2)) -> np.ndarray:
    """What a type can hold, its ends among it; texts are text."""
    rng = np.random.default_rng(3)
    if dtype == "str":
        return np.resize(TEXTS, shape)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(size=shape).astype(kind)
    info = np.iinfo(kind)
    return np.resize(np.array([info.min, info.max, 0, 1], kind), shape)


def echo_variant(folder: Path, *dtypes: str, shape: tuple[int | str, ...] = ("n", "m")) -> Path:
    """Write a variant with an input and an output of each type; open dimensions are their own."""
    inputs = [
        TensorSpec(
            name=echo_input(dtype),
            dtype=dtype,
            shape=[f"{size}_{dtype}" if isinstance(size, str) else size for size in shape],
        )
        for dtype in dtypes
    ]
    outputs = [
        TensorSpec(name=f"{one.name}_out", dtype=one.dtype, shape=one.shape, kind="data")
        for one in inputs
    ]
    nodes = [helper.make_node("Identity", [one.name], [f"{one.name}_out"]) for one in inputs]
    (folder / "model.onnx").write_bytes(graph(nodes, inputs, outputs))
    fixed = [1 if isinstance(size, str) else size for size in shape]
    rows = {
        one.name: np.full(fixed, "a", object)
        if one.dtype == "str"
        else np.ones(fixed, np.dtype(one.dtype))
        for one in inputs
    }
    answers = run_rows(open_session(folder / "model.onnx", SessionOptions()), rows, 1)
    (folder / "golden.safetensors").write_bytes(golden_bytes(GoldenRows(rows, answers)))
    files = [
        FileEntry(path=one.name, size=one.stat().st_size, digest=sha256_digest(one.read_bytes()))
        for one in sorted(folder.iterdir())
    ]
    described = describe(
        name="echo",
        task="other",
        inputs=inputs,
        outputs=outputs,
        operators=["ai.onnx:Identity"],
        budgets=Budgets(),
        golden=Golden(rows=1, atol=0.0, rtol=0.0, top1_agreement=1.0, derived="test"),
        on_nonfinite="count",
        files=files,
    )
    (folder / "edgepack.json").write_bytes(described.to_bytes())
    return folder
