"""A classifier of two features and three classes, without a model: telemetry never runs one."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edgepack_contract.description import (
    Budgets,
    Description,
    Golden,
    Platform,
    Provenance,
    TensorSpec,
)

BUNDLE = "sha256:" + "1" * 64
LABELS = ["a", "b", "c"]


def describe(**changes: Any) -> Description:
    made = Description(
        name="m", version="1.0.0", variant="generic", task="classification",
        inputs=[TensorSpec(name="x", dtype="float32", shape=["n", 2], features=["u", "v"])],
        outputs=[
            TensorSpec(
                name="p", dtype="float32", shape=["n", 3], kind="probabilities", labels=LABELS
            )
        ],
        precision="fp32", ir_version=10, opsets={"": 18}, operators=[], min_runtime="1.31.0",
        platform=Platform(architecture="amd64"), budgets=Budgets(latency_ms=10.0),
        golden=Golden(rows=1, atol=0.0, rtol=0.0, top1_agreement=1.0, derived="test"),
        provenance=Provenance(source_digest="sha256:" + "0" * 64, framework="test"),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def rows(seed: int, n: int, *, moved: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and the answers of a model that looks at them."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, 2)) + moved).astype(np.float32)
    logits = np.stack([x[:, 0], x[:, 1], x[:, 0] - x[:, 1]], axis=1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return x, p.astype(np.float32)
