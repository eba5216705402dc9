"""Small bundles for tests: real in every byte of the format, with made-up models inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack_contract.description import (
    Budgets,
    DeclaredGate,
    Description,
    Golden,
    Metric,
    Platform,
    Provenance,
    SessionOptions,
    TensorSpec,
)
from edgepack_contract.keyring import Keyring, KeyStatus, Publisher
from edgepack_contract.keys import PrivateKey
from edgepack_contract.layout import BundleContent, Content, VariantContent

FILES: Mapping[str, Content] = {
    "golden.safetensors": b"golden rows",
    "model.onnx": b"a graph",
}


def fixed_key(number: int) -> PrivateKey:
    """A key that every run of the tests has: nothing secret is signed with it."""
    return PrivateKey(ec.derive_private_key(0xED6E << 64 | number, ec.SECP256R1()))


PUBLISHER = fixed_key(1)
STRANGER = fixed_key(2)


def describe(**changes: Any) -> Description:
    """The description of a small classifier."""
    base = Description(
        name="digits",
        version="1.0.0",
        variant="generic",
        security_version=3,
        task="classification",
        inputs=[TensorSpec(name="pixels", dtype="float32", shape=["N", 4])],
        outputs=[
            TensorSpec(name="label", dtype="int64", shape=["N"], kind="label"),
            TensorSpec(
                name="p", dtype="float32", shape=["N", 2], kind="probabilities", labels=["a", "b"]
            ),
        ],
        precision="fp32",
        ir_version=10,
        opsets={"ai.onnx": 17},
        operators=["ai.onnx:Gemm", "ai.onnx:Softmax"],
        min_runtime="1.31.0",
        platform=Platform(architecture="amd64"),
        session=SessionOptions(intra_op_threads=1),
        budgets=Budgets(latency_ms=5.0, memory_bytes=64_000_000),
        gates=[
            DeclaredGate(
                name="max-drop", metric="accuracy", threshold=1.0, unit="points", verdict="pass"
            )
        ],
        metrics=[
            Metric(
                name="accuracy", value=0.97, n=899, low=0.957, high=0.98, confidence=0.95,
                dataset="evaluation",
            )
        ],
        golden=Golden(rows=32, atol=1e-4, rtol=1e-3, top1_agreement=1.0, derived="3 x spread"),
        provenance=Provenance(
            source_digest=f"sha256:{'5' * 64}", framework="onnx", tools={"onnx": "1.22.0"}
        ),
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def one_variant(files: Mapping[str, Content] = FILES, **changes: Any) -> BundleContent:
    """A bundle of one variant."""
    return BundleContent([VariantContent(describe(**changes), files)])


def three_variants() -> BundleContent:
    """A bundle for any amd64, for amd64 with VNNI, and for arm64 with the dot product."""
    vnni = {"avx512_vnni", "x86-64-v3"}
    chosen: list[tuple[str, Platform, list[str]]] = [
        ("generic", Platform(architecture="amd64"), []),
        ("x86-64-v3-int8", Platform(architecture="amd64"), sorted(vnni)),
        ("arm64-dot", Platform(architecture="arm64", variant="v8"), ["asimddp"]),
    ]
    return BundleContent(
        [
            VariantContent(
                describe(variant=name, platform=platform, features=features),
                {**FILES, "model.onnx": name.encode(), "reference.json": b"{}"},
            )
            for name, platform, features in chosen
        ]
    )


def keyring(*, key: PrivateKey = PUBLISHER, **changes: Any) -> Keyring:
    """A keyring with one publisher; ``changes`` are those of the publisher."""
    fields: dict[str, Any] = {"names": ["*"], "status": KeyStatus.ACTIVE} | changes
    publisher = Publisher(key=key.public.pem.decode(), **fields)
    return Keyring(
        schema="edgepack-keyring/1",
        version=1,
        epoch=1,
        issued=0,
        owners=["0" * 64],
        publishers=[publisher],
        fleets=[],
    )
