"""What a device measured comes back as it was written, and a model is known by its files alone."""

from __future__ import annotations

import json

import pytest

from edgepack_contract.benchmark import Benchmark, VariantBench, model_digest, read_benchmark
from edgepack_contract.canonical import canonical_json
from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.hardware import Hardware

HOST = Hardware(os="linux", architecture="arm64", variant="v8", features=["asimd"], cores=4,
                memory_bytes=2**32, model="Raspberry Pi 5", onnxruntime="1.31.1")  # fmt: skip
FOUND = Benchmark(
    edgepack="0.1.0", name="m", version="1.0.0", digest=f"sha256:{'1' * 64}", host=HOST, threads=2,
    rounds=3,
    variants=[VariantBench(variant="rpi5", model_digest=f"sha256:{'2' * 64}", p50_ms=1.5)],
)  # fmt: skip


def test_it_comes_back_as_it_was():
    assert read_benchmark(canonical_json(FOUND)) == FOUND
    assert read_benchmark(json.dumps(json.loads(canonical_json(FOUND)), indent=2).encode()) == FOUND


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", "edgepack-bench/2"),
        ("threads", 0),
        ("variants", []),
        ("more", 1),
        ("rounds", "3"),
    ],
)
def test_another_form_is_refused(field, value):
    plain = json.loads(canonical_json(FOUND)) | {field: value}
    with pytest.raises(MalformedDocumentError):
        read_benchmark(json.dumps(plain).encode())


def test_a_model_is_its_graph_and_its_weights():
    files = {"model.onnx": "sha256:a", "model.onnx.data": "sha256:b"}
    known = model_digest(files)
    assert model_digest(files | {"golden.safetensors": "sha256:c", "edgepack.json": "x"}) == known
    assert model_digest(files | {"model.onnx.data": "sha256:c"}) != known
    assert model_digest({"model.onnx": "sha256:a"}) != known
