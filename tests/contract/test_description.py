from __future__ import annotations

import json
from typing import Any

import pytest
from bundle_samples import describe
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.description import (
    Description,
    DimensionRange,
    FileEntry,
    TensorSpec,
    is_file_path,
    parse_description,
)
from edgepack_contract.errors import MalformedBundleError

DIGEST = f"sha256:{'0' * 64}"
FILES = [
    FileEntry(path=path, size=1, digest=DIGEST) for path in ("golden.safetensors", "model.onnx")
]


def complete(**changes: Any) -> Description:
    return describe(**{"files": FILES} | changes)


def plain(**changes: Any) -> dict[str, Any]:
    return json.loads(complete().to_bytes()) | changes


def test_round_trip_and_canonical():
    raw = complete().to_bytes()
    assert parse_description(raw) == complete()
    assert parse_description(raw).to_bytes() == raw
    assert b" " not in raw.replace(b"3 x spread", b"")


def test_state_input_is_fed_from_an_output_of_its_type():
    state = TensorSpec(name="h", dtype="float32", shape=[1, 8], role="state", source="p")
    description = complete(inputs=[state])
    assert parse_description(description.to_bytes()).inputs == [state]


def test_has_reference():
    with_reference = [*FILES, FileEntry(path="reference.json", size=1, digest=DIGEST)]
    assert complete(files=with_reference).has_reference
    assert not complete().has_reference


METRIC = {
    "name": "f1", "value": 0.5, "n": 10, "low": 0.4, "high": 0.6, "confidence": 0.9, "dataset": "d"
}  # fmt: skip
PIXELS = {"name": "x", "dtype": "float32", "shape": ["N", 4]}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"schema": "edgepack/2"}, "schema"),
    ({"surprise": 1}, "surprise"),
    ({"name": "../x"}, "name"),
    ({"name": "Digits"}, "name"),
    ({"variant": "a/b"}, "variant"),
    ({"version": "1.0.0\n"}, "version"),
    ({"version": "1.0"}, "version"),
    ({"security_version": -1}, "security_version"),
    ({"security_version": 2**53 + 1}, "security_version"),
    ({"security_version": True}, "security_version"),
    ({"task": "poetry"}, "task"),
    ({"inputs": []}, "inputs"),
    ({"inputs": [PIXELS, PIXELS]}, "inputs"),
    ({"inputs": [PIXELS | {"dtype": "complex64"}]}, "dtype"),
    ({"inputs": [PIXELS | {"shape": ["N", 0]}]}, "shape"),
    ({"inputs": [PIXELS | {"shape": [1] * 17}]}, "shape"),
    ({"inputs": [PIXELS | {"name": "a\nb"}]}, "name"),
    ({"inputs": [PIXELS | {"name": ""}]}, "name"),
    ({"inputs": [PIXELS | {"features": ["a", "b"]}]}, "inputs.x.features"),
    ({"inputs": [PIXELS | {"features": ["a", "a", "b", "c"]}]}, "inputs.x.features"),
    ({"inputs": [PIXELS | {"role": "state"}]}, "inputs.x.source"),
    ({"inputs": [PIXELS | {"source": "p"}]}, "inputs.x.source"),
    ({"inputs": [PIXELS | {"role": "state", "source": "nothing"}]}, "inputs.x.source"),
    ({"inputs": [PIXELS | {"role": "state", "source": "label"}]}, "inputs.x.source"),
    ({"outputs": [PIXELS | {"role": "state", "source": "x"}]}, "outputs.x"),
    ({"outputs": [PIXELS | {"labels": ["a", "a"]}]}, "outputs.x.labels"),
    ({"dimensions": {"N": {"minimum": 5, "maximum": 4}}}, "dimensions.N"),
    ({"dimensions": {"N": {"minimum": 0, "maximum": 4}}}, "minimum"),
    ({"quantization": {"method": "static"}}, "quantization"),
    ({"ir_version": 2}, "ir_version"),
    ({"opsets": {}}, "opsets"),
    ({"opsets": {"ai.onnx": 0}}, "opsets"),
    ({"operators": ["Gemm"]}, "operators"),
    ({"operators": ["ai.onnx:Softmax", "ai.onnx:Gemm"]}, "operators"),
    ({"min_runtime": "1.31"}, "min_runtime"),
    ({"min_runtime": "1.31.0 "}, "min_runtime"),
    ({"platform": {"os": "linux", "architecture": "i386"}}, "platform.architecture"),
    ({"platform": {"os": "windows", "architecture": "amd64"}}, "platform.os"),
    ({"features": ["b", "a"]}, "features"),
    ({"features": ["a", "a"]}, "features"),
    ({"features": ["AVX"]}, "features"),
    ({"session": {"intra_op_threads": 4096}}, "intra_op_threads"),
    ({"session": {"spin": True}}, "spin"),
    ({"budgets": {"latency_ms": 0.0}}, "latency_ms"),
    ({"budgets": {"size_bytes": 0}}, "size_bytes"),
    ({"gates": [{"name": "a", "metric": "b", "threshold": 1, "unit": "c", "verdict": "fail"}]},
     "verdict"),
    ({"metrics": [METRIC | {"n": 0}]}, "n"),
    ({"metrics": [METRIC | {"low": 0.7}]}, "metrics.f1"),
    ({"metrics": [METRIC | {"confidence": 1.5}]}, "confidence"),
    ({"golden": {"rows": 0, "atol": 0, "rtol": 0, "top1_agreement": 1, "derived": ""}}, "rows"),
    ({"golden": {"rows": 1, "atol": -1, "rtol": 0, "top1_agreement": 1, "derived": ""}}, "atol"),
    ({"provenance": {"source_digest": "md5:1", "framework": "x"}}, "source_digest"),
    ({"on_nonfinite": "ignore"}, "on_nonfinite"),
    ({"files": []}, "files: model.onnx is missing"),
    ({"files": [{"path": "model.onnx", "size": 1, "digest": DIGEST}]}, "golden.safetensors"),
    ({"files": [{"path": "../model.onnx", "size": 1, "digest": DIGEST}]}, "path"),
    ({"files": [{"path": "edgepack.json", "size": 1, "digest": DIGEST}]}, "path"),
    ({"files": [{"path": "model.onnx", "size": -1, "digest": DIGEST}]}, "size"),
    ({"files": [{"path": "model.onnx", "size": 2**33 + 1, "digest": DIGEST}]}, "size"),
    ({"files": [{"path": p, "size": 1, "digest": DIGEST} for p in ("a", "a/b")]}, "folder"),
    ({"files": [{"path": p, "size": 1, "digest": DIGEST} for p in ("b", "a")]}, "sorted"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "named"), WRONG)
def test_refuses_and_names_the_field(change, named):
    with pytest.raises(MalformedBundleError) as refusal:
        parse_description(json.dumps(plain(**change)).encode())
    assert named in str(refusal.value)


@pytest.mark.parametrize("field", sorted(set(plain()) - {
    "schema", "security_version", "dimensions", "quantization", "features", "session", "budgets",
    "gates", "metrics", "on_nonfinite",
}))  # fmt: skip
def test_a_required_field_may_not_be_missing(field):
    fields = plain()
    del fields[field]
    with pytest.raises(MalformedBundleError, match=field):
        parse_description(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xef\xbb\xbf{}",
        json.dumps(plain()).encode("utf-16"),
        json.dumps(plain()).replace("0.97", "1e999").encode(),
        json.dumps(plain()).replace("0.97", "NaN").encode(),
        json.dumps(plain()).replace("3 x spread", "\\ud800").encode(),
        json.dumps(plain()).replace('"version"', '"name": "other", "version"').encode(),
        json.dumps(plain()).replace('"ir_version": 10', f'"ir_version": {"9" * 5000}').encode(),
        json.dumps(plain(quantization={"a": "b" * 2**20})).encode(),
        b'{"a":' + b"[" * 100_000,
    ],
    ids=[
        "empty",
        "list",
        "bom",
        "utf16",
        "inf",
        "nan",
        "surrogate",
        "twice",
        "long",
        "big",
        "deep",
    ],
)
def test_refuses_json_that_two_readers_understand_differently(raw):
    with pytest.raises(MalformedBundleError):
        parse_description(raw)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", ".git", "a/.b", "a.", "A", "a b", "a\0",
     "a\n", "a\\b", "a/b/c/d", "a" * 101, "é", "-a"],
)  # fmt: skip
def test_paths_that_no_file_may_have(path):
    assert not is_file_path(path)


@pytest.mark.parametrize("path", ["a", "model.onnx", "model.onnx.data", "a/b-1/c_2.x", "a" * 100])
def test_paths_that_a_file_may_have(path):
    assert is_file_path(path)


names = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=20)
sizes = st.integers(1, 2**31 - 1)


@given(
    shape=st.lists(sizes | st.from_regex(r"\A[A-Za-z_]{1,8}\Z"), max_size=16),
    name=names,
    security_version=st.integers(0, 2**53),
    value=st.floats(-1e300, 1e300),
    low=sizes,
)
def test_what_is_written_is_read_back(shape, name, security_version, value, low):
    base = complete()
    metric = [
        type(base.metrics[0])(
            name=name, value=value, n=1, low=value, high=value, confidence=0.5, dataset=name
        )
    ]
    description = complete(
        inputs=[TensorSpec(name=name, dtype="float64", shape=shape)],
        security_version=security_version,
        metrics=metric,
        dimensions={"N": DimensionRange(minimum=low, maximum=2**31 - 1)},
    )
    assert parse_description(description.to_bytes()) == description
