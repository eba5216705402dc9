from __future__ import annotations

import json
from typing import Any

import pytest
from bundle_samples import describe

from edgepack_contract.description import Budgets
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.oci import (
    FILEPATH,
    INDEX_TYPE,
    MANIFEST_TYPE,
    MODEL_CONFIG_TYPE,
    MODEL_TYPE,
    REF_NAME,
    WEIGHT_CONFIG_TYPE,
    WEIGHT_TYPE,
    Key,
    describe_bytes,
    evidence_tag,
    index_annotations,
    is_count,
    layer_paths,
    layer_type,
    model_config,
    parse_index,
    parse_manifest,
    signature_tag,
    variant_descriptor,
)
from edgepack_contract.oci_layout import read_layout_index, write_layout_index

DIGEST = f"sha256:{'a' * 64}"
LAYER = {
    "mediaType": WEIGHT_TYPE,
    "digest": DIGEST,
    "size": 1,
    "annotations": {FILEPATH: "model.onnx"},
}


def index(**changes: Any) -> dict[str, Any]:
    entry = variant_descriptor(describe(), digest=DIGEST, size=5)
    return {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [json.loads(json.dumps(_plain(entry)))],
        "annotations": dict(index_annotations(describe())),
    } | changes


def _plain(entry) -> dict[str, Any]:
    return {
        "mediaType": entry.media_type,
        "digest": entry.digest,
        "size": entry.size,
        "annotations": dict(entry.annotations),
        "platform": {"os": "linux", "architecture": "amd64"},
    }


def entry(*, annotations: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    found = index()["manifests"][0]
    return found | {"annotations": found["annotations"] | (annotations or {})} | changes


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def test_an_index_is_read():
    found = parse_index(json.dumps(index()).encode())
    assert found.annotations[Key.NAME] == "digits"
    assert found.manifests == [variant_descriptor(describe(), digest=DIGEST, size=5)]


def test_memory_is_optional():
    found = variant_descriptor(describe(budgets=Budgets()), digest=DIGEST, size=5)
    assert Key.MEMORY not in found.annotations


ANNOTATIONS = dict(index_annotations(describe()))
BROKEN_INDEXES: dict[str, dict[str, Any]] = {
    "schema version": index(schemaVersion=1),
    "media type": index(mediaType=MANIFEST_TYPE),
    "unknown field": index(subject=None),
    "no variant": index(manifests=[]),
    "too many variants": index(manifests=[entry()] * 65),
    "two variants of one name": index(manifests=[entry(), entry()]),
    "no annotations": without(index(), "annotations"),
    "another format": index(annotations=ANNOTATIONS | {Key.FORMAT: "edgepack-bundle/2"}),
    "unknown annotation": index(annotations=ANNOTATIONS | {"dev.edgepack.other": "1"}),
    "missing annotation": index(annotations=without(ANNOTATIONS, Key.NAME)),
    "name": index(annotations=ANNOTATIONS | {Key.NAME: "../x"}),
    "version": index(annotations=ANNOTATIONS | {Key.VERSION: "1.0.0\n"}),
    "security version": index(annotations=ANNOTATIONS | {Key.SECURITY_VERSION: "03"}),
    "annotation not text": index(annotations=ANNOTATIONS | {Key.SECURITY_VERSION: 3}),
    "variant escapes": index(manifests=[entry(annotations={Key.VARIANT: "../x"})]),
    "variant unknown annotation": index(manifests=[entry(annotations={"x": "y"})]),
    "features unsorted": index(manifests=[entry(annotations={Key.FEATURES: "b,a"})]),
    "features empty name": index(manifests=[entry(annotations={Key.FEATURES: "a,"})]),
    "features upper case": index(manifests=[entry(annotations={Key.FEATURES: "AVX"})]),
    "minimum runtime": index(manifests=[entry(annotations={Key.MIN_RUNTIME: "1.31"})]),
    "memory": index(manifests=[entry(annotations={Key.MEMORY: "1e6"})]),
    "variant of another media type": index(manifests=[entry(mediaType=INDEX_TYPE)]),
    "variant with an artifact type": index(manifests=[entry(artifactType=MODEL_TYPE)]),
    "variant without platform": index(manifests=[without(entry(), "platform")]),
    "platform with unknown field": index(
        manifests=[entry(platform={"os": "linux", "architecture": "amd64", "os.version": "1"})]
    ),
    "digest of another kind": index(manifests=[entry(digest="sha512:00")]),
    "digest upper case": index(manifests=[entry(digest=DIGEST.replace("a", "A"))]),
    "size negative": index(manifests=[entry(size=-1)]),
    "size over 8 GiB": index(manifests=[entry(size=2**33 + 1)]),
    "size not whole": index(manifests=[entry(size=1.5)]),
    "data inside the descriptor": index(manifests=[entry(data="eA==")]),
    "urls": index(manifests=[entry(urls=["https://example.org"])]),
}


@pytest.mark.parametrize("broken", BROKEN_INDEXES.values(), ids=BROKEN_INDEXES)
def test_a_broken_index_is_refused(broken):
    with pytest.raises(MalformedBundleError):
        parse_index(json.dumps(broken).encode())


def manifest(**changes: Any) -> bytes:
    fields = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": MODEL_TYPE,
        "config": {"mediaType": MODEL_CONFIG_TYPE, "digest": DIGEST, "size": 2},
        "layers": [LAYER],
    }
    return json.dumps(fields | changes).encode()


def test_a_manifest_is_read():
    found = parse_manifest(manifest(), what="it", artifact_type=MODEL_TYPE)
    assert set(layer_paths(found, what="it")) == {"model.onnx"}


@pytest.mark.parametrize(
    "changes",
    [
        {"artifactType": "other"},
        {"layers": []},
        {"layers": [LAYER] * 66},
        {"layers": [LAYER, LAYER]},
        {"layers": [without(LAYER, "annotations")]},
        {"layers": [LAYER | {"annotations": {FILEPATH: "../x"}}]},
        {"layers": [LAYER | {"annotations": {FILEPATH: "model.onnx", "x": "y"}}]},
        {"layers": [LAYER | {"mediaType": WEIGHT_CONFIG_TYPE}]},
        {"config": None},
        {"history": []},
    ],
)
def test_a_broken_manifest_is_refused(changes):
    with pytest.raises(MalformedBundleError, match="it"):
        layer_paths(
            parse_manifest(manifest(**changes), what="it", artifact_type=MODEL_TYPE), what="it"
        )


def test_the_config_has_the_fields_of_the_modelpack_schema_and_no_others():
    # the required and allowed properties of the published config-schema.json
    layers = [describe_bytes(layer_type("model.onnx"), b"x", path="model.onnx")]
    config = json.loads(model_config(describe(), layers))
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert set(config["descriptor"]) <= {"createdAt", "authors", "family", "name", "version"}
    assert set(config["config"]) <= {"architecture", "format", "paramSize", "precision"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [layers[0].digest]}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model.onnx", "weight.v1"), ("model.onnx.data", "weight.v1"),
        ("golden.safetensors", "dataset.v1"), ("reference.json", "weight.config.v1"),
        ("edgepack.json", "weight.config.v1"), ("report.html", "doc.v1"),
    ],
)  # fmt: skip
def test_media_type_follows_from_the_path(path, kind):
    assert layer_type(path) == f"application/vnd.cncf.model.{kind}.raw"


@pytest.mark.parametrize("text", ["0", "7", str(2**53)])
def test_counts(text):
    assert is_count(text)


@pytest.mark.parametrize("text", ["", "-1", "01", "1\n", "٣", "1e3", str(2**53 + 1), "9" * 5000])
def test_no_counts(text):
    assert not is_count(text)


TAGS = {
    "1.0.0": describe_bytes(INDEX_TYPE, b"bundle"),
    signature_tag(describe_bytes(INDEX_TYPE, b"bundle").digest): describe_bytes(
        MANIFEST_TYPE, b"s"
    ),
    evidence_tag(describe_bytes(INDEX_TYPE, b"bundle").digest): describe_bytes(MANIFEST_TYPE, b"e"),
}


def test_layout_index_round_trip():
    found = read_layout_index(write_layout_index(TAGS))
    assert {tag: (one.digest, one.size) for tag, one in found.items()} == {
        tag: (one.digest, one.size) for tag, one in TAGS.items()
    }


def layout(**changes: Any) -> bytes:
    return json.dumps(json.loads(write_layout_index(TAGS)) | changes).encode()


FIRST, SIGNATURE, _ = json.loads(layout())["manifests"]


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": {"a": "b"}},
        {"manifests": []},
        {"manifests": [SIGNATURE]},
        {"manifests": [FIRST, FIRST]},
        {"manifests": [FIRST, FIRST | {"annotations": {REF_NAME: "2.0.0"}}]},
        {"manifests": [FIRST | {"annotations": {REF_NAME: "latest"}}]},
        {"manifests": [FIRST | {"annotations": {REF_NAME: "1.0.0", "a": "b"}}]},
        {"manifests": [without(FIRST, "annotations")]},
        {"manifests": [FIRST | {"artifactType": "a"}]},
        {"manifests": [FIRST | {"platform": {"os": "linux", "architecture": "amd64"}}]},
        {"manifests": [FIRST | {"digest": DIGEST}, SIGNATURE]},
        {"manifests": [FIRST, SIGNATURE | {"annotations": {REF_NAME: "other"}}]},
        {"manifests": [FIRST, SIGNATURE | {"mediaType": "text/plain"}]},
    ],
)
def test_a_broken_layout_index_is_refused(changes):
    with pytest.raises(MalformedBundleError):
        read_layout_index(layout(**changes))
