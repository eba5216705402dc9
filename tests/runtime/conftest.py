"""A small real variant in a folder, as the packager would unpack it: model, golden, reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack_contract.description import (
    Budgets,
    Description,
    FileEntry,
    Golden,
    Platform,
    Provenance,
    SessionOptions,
    TensorSpec,
)
from edgepack_contract.digest import sha256_digest
from edgepack_contract.reference import (
    ENTROPY_EDGES,
    SHARE_EDGES,
    Calibration,
    FeatureReference,
    OutputHistogram,
    OutputReference,
    Reference,
)
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, run_rows
from edgepack_runtime.inference.session import open_session

FEATURES = ["temperature", "pressure", "flow", "age"]
LABELS = ["ok", "worn", "broken"]
GOLDEN_ROWS = 8

VariantFactory = Callable[..., Path]


def graph_bytes(*, seed: int, bias: float = 0.0, batch: int | str = "batch") -> bytes:
    """softmax(x W + b) with its argmax: x [batch, 4] -> label [batch], probabilities [batch, 3]."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(len(FEATURES), len(LABELS))).astype(np.float32)
    offsets = np.array([bias, 0.0, 0.0], np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, len(FEATURES)])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [batch]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, len(LABELS)]),
        ],
        [numpy_helper.from_array(weights, "W"), numpy_helper.from_array(offsets, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def describe(**changes: Any) -> Description:
    """The description of that graph; ``changes`` replace fields."""
    batch = changes.pop("batch", "batch")
    description = Description(
        name="pump",
        version="1.0.0",
        variant="generic",
        task="classification",
        inputs=[
            TensorSpec(name="x", dtype="float32", shape=[batch, len(FEATURES)], features=FEATURES)
        ],
        outputs=[
            TensorSpec(name="label", dtype="int64", shape=[batch], labels=LABELS, kind="label"),
            TensorSpec(
                name="probabilities",
                dtype="float32",
                shape=[batch, len(LABELS)],
                labels=LABELS,
                kind="probabilities",
            ),
        ],
        precision="fp32",
        ir_version=10,
        opsets={"ai.onnx": 17},
        operators=["ai.onnx:ArgMax", "ai.onnx:Gemm", "ai.onnx:Softmax"],
        min_runtime="1.31.0",
        platform=Platform(architecture="amd64"),
        session=SessionOptions(intra_op_threads=1, inter_op_threads=1),
        budgets=Budgets(latency_ms=1000.0),
        golden=Golden(rows=GOLDEN_ROWS, atol=1e-5, rtol=1e-5, top1_agreement=1.0, derived="test"),
        provenance=Provenance(source_digest=sha256_digest(b"source"), framework="test"),
    )
    return msgspec.structs.replace(description, **changes)


def reference_of(rows: np.ndarray, answers: dict[str, np.ndarray]) -> Reference:
    """A reference with five quantile edges a feature."""
    features = []
    for index, feature in enumerate(FEATURES):
        column = rows[:, index]
        edges = np.quantile(column, [0.0, 0.25, 0.5, 0.75]).astype(np.float32)
        last = np.nextafter(column.max(), np.float32(np.inf))
        edges = [float(edge) for edge in np.append(edges, last)]
        counts = np.histogram(column, edges)[0]
        features.append(
            FeatureReference(
                tensor="x",
                feature=feature,
                index=index,
                kind="numeric",
                edges=edges,
                counts=[0, *map(int, counts), 0],
                null=0,
                mean=float(column.mean()),
                std=float(column.std()),
                calibration=Calibration(sum_l=3.0, sum_l2=3.0, max_l=1.0),
            )
        )
    classes = np.bincount(answers["label"], minlength=len(LABELS))
    share = OutputHistogram(edges=list(SHARE_EDGES), counts=[0] * (len(SHARE_EDGES) + 1))
    entropy = OutputHistogram(edges=list(ENTROPY_EDGES), counts=[0] * (len(ENTROPY_EDGES) + 1))
    outputs = OutputReference(
        classes=LABELS,
        class_counts=[*map(int, classes), 0],
        score=share,
        margin=share,
        entropy=entropy,
    )
    return Reference(rows=len(rows), ordered=False, inputs=features, outputs=outputs)


@pytest.fixture(scope="session")
def make_variant(tmp_path_factory: pytest.TempPathFactory) -> VariantFactory:
    """``make_variant("v", seed=1, version="1.1.0", ...)`` writes a variant, returns its new folder.

    ``seed`` and ``bias`` make the model, ``reference=False`` leaves out the reference, every other
    keyword replaces a field of the description.
    """

    def build(
        folder: str, *, seed: int = 1, bias: float = 0.0, reference: bool = True, **changes: Any
    ) -> Path:
        path = tmp_path_factory.mktemp(folder)
        batch = changes.get("batch", "batch")
        (path / "model.onnx").write_bytes(graph_bytes(seed=seed, bias=bias, batch=batch))
        rng = np.random.default_rng(7)
        entries = GOLDEN_ROWS * (batch if isinstance(batch, int) else 1)
        inputs = {"x": rng.normal(size=(entries, len(FEATURES))).astype(np.float32)}
        session = open_session(path / "model.onnx", SessionOptions())
        answers = run_rows(session, inputs, GOLDEN_ROWS)
        (path / "golden.safetensors").write_bytes(golden_bytes(GoldenRows(inputs, answers)))
        if reference:
            (path / "reference.json").write_bytes(reference_of(inputs["x"], answers).to_bytes())
        files = [
            FileEntry(
                path=entry.name, size=entry.stat().st_size, digest=sha256_digest(entry.read_bytes())
            )
            for entry in sorted(path.iterdir())
        ]
        (path / "edgepack.json").write_bytes(describe(files=files, **changes).to_bytes())
        return path

    return build
