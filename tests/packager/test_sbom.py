"""The bill of materials: valid CycloneDX, complete, and the same bytes every time."""

from __future__ import annotations

import json

import msgspec
import pytest
from bundle_samples import FILES, describe, three_variants
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.packager.report.report_samples import EVIL, report

from edgepack_contract.description import FileEntry
from edgepack_contract.digest import sha256_digest
from edgepack_contract.layout import outline, write_bundle
from edgepack_packager.sbom import sbom_of

ENTRIES = [
    FileEntry(path=path, size=len(raw), digest=sha256_digest(raw)) for path, raw in FILES.items()
]


@pytest.fixture(scope="module")
def document():
    shipped = describe(variant="generic-amd64", files=ENTRIES)
    raw = sbom_of(report(), [shipped, describe(variant="other", files=ENTRIES)])
    return json.loads(raw)


def component(document, ref):
    (found,) = [item for item in document["components"] if item["bom-ref"] == ref]
    return found


def test_it_is_valid_by_the_published_schema(document):
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    assert problem is None, problem


def test_the_schema_would_refuse_something_else(document):
    broken = {**document, "components": [{"type": "model", "name": "x"}]}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_every_file_has_its_digest(document):
    files = component(document, "variant:generic-amd64")["components"]
    found = {item["name"]: item["hashes"][0]["content"] for item in files}
    assert found == {
        path: sha256_digest(raw).removeprefix("sha256:") for path, raw in FILES.items()
    }


def test_the_model_card_has_metrics_with_intervals_and_slices(document):
    card = component(document, "variant:generic-amd64")["modelCard"]
    metrics = card["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics[0] == {
        "type": "accuracy (n=899)", "value": "0.97",
        "confidenceInterval": {"lowerBound": "0.957", "upperBound": "0.98"},
    }  # fmt: skip
    assert f"season={EVIL}" in {metric.get("slice") for metric in metrics}
    assert card["modelParameters"]["task"] == "classification"
    assert card["modelParameters"]["inputs"] == [{"format": "pixels: float32[N, 4]"}]
    assert EVIL in card["considerations"]["technicalLimitations"]
    other = component(document, "variant:other")["modelCard"]
    assert len(other["quantitativeAnalysis"]["performanceMetrics"]) == 1


def test_data_source_and_runtime_are_components_that_variants_need(document):
    assert component(document, "data:data")["hashes"][0]["content"] == "6" * 64
    assert component(document, "source")["hashes"][0]["content"] == "5" * 64
    assert component(document, "runtime:onnxruntime")["version"] == ">=1.31.0"
    needs = {item["ref"]: item["dependsOn"] for item in document["dependencies"]}
    assert needs["bundle"] == ["variant:generic-amd64", "variant:other"]
    assert needs["variant:other"] == ["data:data", "runtime:onnxruntime", "source"]


def test_references_are_unique_and_lead_somewhere(document):
    refs = []

    def walk(value):
        if isinstance(value, dict):
            refs.extend(text for key, text in value.items() if key == "bom-ref")
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    walk(document)
    assert len(refs) == len(set(refs))
    assert {ref for item in document["dependencies"] for ref in item["dependsOn"]} <= set(refs)


def test_the_serial_number_follows_from_the_digest():
    one, again = (sbom_of(report(), [describe(files=ENTRIES)]) for _ in range(2))
    assert one == again
    other = report(bundle=msgspec.structs.replace(report().bundle, digest=f"sha256:{'b' * 64}"))
    serials = [
        json.loads(raw)["serialNumber"] for raw in (one, sbom_of(other, [describe(files=ENTRIES)]))
    ]
    assert serials[0] != serials[1]


def test_the_outline_of_a_bundle_is_what_will_be_written(tmp_path):
    content = three_variants()
    digest, descriptions = outline(content)
    assert digest == write_bundle(tmp_path / "b.edgepack", content)
    assert [item.variant for item in descriptions] == ["generic", "x86-64-v3-int8", "arm64-dot"]
    assert {entry.path for entry in descriptions[1].files} == {*FILES, "reference.json"}
