"""Bundles with alternatives: their order, what is shared, locks, and what a device measured."""

import dataclasses
import tarfile

import msgspec
import pytest
from tests.packager.test_build import descriptions
from tests.packager.test_targets import PI, machine

from edgepack_contract.benchmark import Benchmark, VariantBench, model_digest
from edgepack_contract.bundle import BundleFile, verify_bundle_file
from edgepack_contract.canonical import canonical_json
from edgepack_contract.description import MODEL_PATH
from edgepack_contract.variants import select_variant
from edgepack_packager import AccuracyGateError, Recipe, build
from edgepack_packager.lock import read_lock

PI5 = msgspec.structs.replace(
    machine("arm64", *PI, model="Raspberry Pi 5 Model B Rev 1.0"), variant="v8"
)


@pytest.fixture(scope="module")
def make(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")

    def recipe(**changes):
        values = {
            "model": digits / "network.skops", "name": "digits", "version": "1.0.0",
            "overwrite": True, "output": folder / "digits.edgepack", "data": digits / "rows.npz",
            "label": "label", "targets": ("rpi5",), "max_drop": "3pt",
        }  # fmt: skip
        return Recipe(**{**values, **changes})

    return recipe


@pytest.fixture(scope="module")
def carried(make, tmp_path_factory):
    """A bundle for two boards, and its lock."""
    folder = tmp_path_factory.mktemp("carried")
    recipe = make(
        targets=("rpi5", "generic-arm64"), output=folder / "two.edgepack", lock=folder / "two.lock"
    )
    return recipe, build(recipe)


def ranked(path, hardware):
    with BundleFile.open(path) as file:
        index = verify_bundle_file(file, keyring=None).index
    return [variant.name for variant in select_variant(index, hardware)]


def test_a_device_gets_the_best_first_and_float_among_the_rest(carried):
    _, result = carried
    names = ranked(result.path, PI5)
    assert names[0] == "rpi5"
    assert "rpi5-fp32" in names[1:3]
    assert names[3] == "generic-arm64"
    found = {item.variant: item for item in descriptions(result.path)}
    assert found["rpi5"].precision == "int8-static"
    assert found["rpi5-fp32"].precision == "fp32"
    assert found["generic-arm64"].precision == "fp32"
    assert len({found[name].precision for name in names[:3]}) == 3
    assert any("carried as an alternative" in row.reason for row in result.table)


def test_what_variants_share_is_stored_once(carried):
    _, result = carried
    found = {item.variant: item for item in descriptions(result.path)}
    digests = [
        {entry.path: entry.digest for entry in found[name].files}[MODEL_PATH]
        for name in ("rpi5-fp32", "generic-arm64")
    ]
    assert digests[0] == digests[1]
    with tarfile.open(result.path) as archive:
        names = archive.getnames()
    assert len(names) == len(set(names))
    assert names.count("blobs/sha256/" + digests[0].removeprefix("sha256:")) == 1


def test_a_lock_holds_the_whole_ranking_and_repeats_it(carried, tmp_path):
    recipe, result = carried
    lock = read_lock(recipe.lock)
    assert len(lock.targets["rpi5"].variants) == 3
    again = build(
        dataclasses.replace(recipe, output=tmp_path / "again.edgepack", locked=True, targets=())
    )
    assert again.digest == result.digest
    assert len(descriptions(again.path)) == 6


@pytest.mark.parametrize(("count", "names"), [(0, ["rpi5"]), (1, ["rpi5", "rpi5-fp32"])])
def test_as_many_alternatives_as_asked_for(make, count, names):
    result = build(make(alternatives=count))
    assert [item.variant for item in descriptions(result.path)] == names


def benchmark(path, times, host=PI5):
    """What a device would say of a bundle: milliseconds by name of the variant."""
    variants = []
    for item in descriptions(path):
        digest = model_digest({entry.path: entry.digest for entry in item.files})
        ms = times.get(item.variant, 9.0)
        variants.append(
            VariantBench(
                variant=item.variant,
                model_digest=digest,
                p50_ms=ms,
                p95_ms=ms,
                p99_ms=ms,
                peak_bytes=10**7,
                rows=64,
            )
        )
    return canonical_json(
        Benchmark(
            edgepack="1",
            name="digits",
            version="1.0.0",
            digest="sha256:" + "0" * 64,
            host=host,
            threads=1,
            rounds=3,
            variants=variants,
        )
    )


def test_what_a_device_measured_decides(make, tmp_path):
    first = build(make())
    file = tmp_path / "pi.json"
    file.write_bytes(benchmark(first.path, {"rpi5-fp32": 1.0}))
    result = build(make(measured=(file,), max_latency_ms=5.0, output=tmp_path / "b.edgepack"))
    (description,) = descriptions(result.path)
    assert (description.variant, description.precision) == ("rpi5", "fp32")
    gates = {gate.name: gate.verdict for gate in description.gates}
    assert gates["max-latency"] == "pass"
    assert not any("not measured" in text and "latency" in text for text in result.warnings)
    assert any(row.reason == "was not measured on the device" for row in result.table)


def test_figures_of_another_machine_or_model_are_said_and_not_used(make, tmp_path):
    first = build(make())
    strange, other = tmp_path / "strange.json", tmp_path / "other.json"
    strange.write_bytes(benchmark(first.path, {}, machine("amd64", model="a server")))
    foreign = build(make(data=None, label=None, output=tmp_path / "f.edgepack"))
    raw = benchmark(foreign.path, {})
    other.write_bytes(raw.replace(raw.split(b'model_digest":"sha256:')[1][:8], b"00000000"))
    result = build(make(measured=(strange, other)))
    assert any("strange.json was measured on a server" in text for text in result.warnings)
    assert any("other models than this build's fp32" in text for text in result.warnings)
    assert any("no candidates of this build" in text for text in result.warnings)
    assert len(descriptions(result.path)) == 3


def test_the_digest_does_not_depend_on_jobs(make, carried, tmp_path):
    wanted = make(targets=("rpi5", "generic-arm64"), jobs=5, output=tmp_path / "jobs.edgepack")
    assert build(wanted).digest == carried[1].digest


def test_a_time_budget_ends_with_the_best_so_far_and_says_what_was_left_out(make, tmp_path):
    lock = tmp_path / "short.lock"
    short = make(time_budget_s=1e-6, lock=lock, output=tmp_path / "short.edgepack")
    result = build(short)
    assert [row.name for row in result.table] == ["fp32"]
    (words,) = [text for text in result.warnings if "time budget" in text]
    assert "rpi5: the time budget ended before int8-static, int8-dynamic" in words
    again = dataclasses.replace(short, time_budget_s=None, locked=True)
    assert build(again).digest == result.digest


def test_int8_that_is_required_is_not_excused_by_the_clock(make):
    with pytest.raises(AccuracyGateError, match="int8 is required"):
        build(make(time_budget_s=1e-6, require_int8=True))
