"""The evidence of a real build: complete, decodable, without this machine's folders."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import onnx
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.packager.models import mlp, rows

from edgepack_contract.bundle import BundleFile, open_evidence, read_blob, verify_bundle_file
from edgepack_packager import Recipe, build
from edgepack_packager.graphs.running import open_folder, save_model
from edgepack_packager.report.schema import Report


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A build with slices for two targets, and what it told while it ran."""
    folder = tmp_path_factory.mktemp("reported")
    onnx.save(mlp(), folder / "m.onnx")
    x = rows(n=400)
    save_model(mlp(), folder / "saved")
    truth = open_folder(folder / "saved").run({"x": x})["probabilities"].argmax(axis=1)
    half = np.where(x[:, 0] > 0, "up", "down")
    np.savez(folder / "rows.npz", x=x, truth=truth, half=half)
    told = []
    recipe = Recipe(
        model=folder / "m.onnx", name="m", version="1.0.0", output=folder / "m.edgepack",
        data=folder / "rows.npz", label="truth", slices=("half",), max_size_bytes=1 << 20,
        targets=("generic-amd64", "generic-arm64"), report_json=folder / "r.json",
    )  # fmt: skip
    return build(recipe, told.append), told, folder


@pytest.fixture(scope="module")
def evidence(built):
    result, _, _ = built
    with BundleFile.open(result.path) as file:
        bundle = verify_bundle_file(file, keyring=None)
        found = open_evidence(bundle, file)
        return {
            name: read_blob(file, layer, what=name, max_bytes=1 << 22)
            for name, layer in found.items()
        }


def test_the_evidence_travels_in_the_bundle(built, evidence):
    assert set(evidence) == {"report.html", "report.json", "sbom.cdx.json"}
    assert evidence["report.json"] == (built[2] / "r.json").read_bytes()


def test_the_report_is_what_its_schema_says(built, evidence):
    report = msgspec.json.decode(evidence["report.json"], type=Report)
    result, _, _ = built
    assert result.report == json.loads(evidence["report.json"])
    assert report.bundle.digest == result.digest
    assert [target.target for target in report.targets] == ["generic-amd64", "generic-arm64"]
    rows_of_table = [(row.target, row.name, row.chosen) for row in result.table]
    assert rows_of_table == [
        (target.target, item.name, item.chosen)
        for target in report.targets
        for item in target.candidates
    ]


def test_every_figure_has_rows_behind_it(evidence):
    report = msgspec.json.decode(evidence["report.json"], type=Report)
    for target in report.targets:
        for item in target.candidates:
            assert all(metric.n > 0 for metric in item.metrics)
            assert item.loss is None or item.loss.n == report.data.evaluation_rows
            assert {gate.gate for gate in item.gates} == {"max-drop", "max-size"}
            assert item.reason
    chosen = report.targets[0].winner
    assert {figure.value for figure in chosen.slices} == {"up", "down"}
    assert sum(figure.n for figure in chosen.slices) == report.data.evaluation_rows


def test_what_ships_is_named_as_in_the_bundle(built, evidence):
    report = msgspec.json.decode(evidence["report.json"], type=Report)
    shipped = {item.ships_as for target in report.targets for item in target.candidates} - {None}
    with BundleFile.open(built[0].path) as file:
        bundle = verify_bundle_file(file, keyring=None)
        assert shipped == {variant.name for variant in bundle.variants}


def test_no_folder_of_this_machine_is_told(built, evidence):
    for name, raw in evidence.items():
        assert str(built[2]).encode() not in raw, name


def test_the_bill_of_materials_is_valid_and_names_the_digest(built, evidence):
    raw = evidence["sbom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw) is None
    component = json.loads(raw)["metadata"]["component"]
    assert f"sha256:{component['hashes'][0]['content']}" == built[0].digest


def test_candidates_are_told_as_they_come(built):
    result, told, _ = built
    tried = [(step.tried.target, step.tried.name) for step in told if step.tried is not None]
    assert tried
    assert set(tried) <= {(row.target, row.name) for row in result.table}
    assert all(step.step == "search" for step in told if step.tried is not None)
