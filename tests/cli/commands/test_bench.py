"""``edgepack bench`` and ``edgepack selftest`` on this machine, with models that run."""

from __future__ import annotations

import json
import shutil

import pytest
from world_bundles import model_files, tiny_bundle, tiny_description

from edgepack_contract.benchmark import read_benchmark
from edgepack_contract.bundle import BundleFile
from edgepack_contract.description import Budgets, Platform
from edgepack_contract.hardware import this_machine
from edgepack_contract.layout import BundleContent, VariantContent, unpack, write_bundle

HERE = this_machine(onnxruntime="1.31.0").architecture
ELSEWHERE = "arm64" if HERE == "amd64" else "amd64"


def variant(name, **changes):
    return VariantContent(tiny_description("1.0.0", variant=name, **changes), model_files("1.0.0"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A good variant, its alternative, and one for another machine."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.edgepack"
    other = variant("elsewhere", platform=Platform(architecture=ELSEWHERE))
    write_bundle(path, BundleContent([variant("best"), variant("best-fp32"), other]))
    return path


@pytest.fixture
def wrong(tmp_path):
    """Golden rows that this model does not give."""
    files = model_files("1.0.0") | {
        "golden.safetensors": model_files("2.0.0")["golden.safetensors"]
    }
    path = tmp_path / "wrong.edgepack"
    write_bundle(path, BundleContent([VariantContent(tiny_description("1.0.0"), files)]))
    return path


def test_the_best_variant_and_its_alternatives_are_measured(cli, tiny):
    ended = cli("bench", tiny, "--json", "--rounds", "1", "--threads", "2")
    assert (ended.code, ended.err) == (0, "")
    found = read_benchmark(ended.out.encode())
    assert [one.variant for one in found.variants] == ["best", "best-fp32"]
    assert (found.threads, found.rounds, found.host.architecture) == (2, 1, HERE)
    first = found.variants[0]
    assert 0 < first.p50_ms <= first.p95_ms <= first.p99_ms
    assert first.load_ms > 0
    assert first.peak_bytes > 0
    assert first.rows == 8
    assert first.model_digest == found.variants[1].model_digest


def test_for_people(cli, tiny):
    ended = cli("bench", tiny, "--variant", "best", "--rounds", "1")
    head, names, row = ended.out.splitlines()
    assert "tiny 1.0.0 on " in head
    assert names.split() == ["VARIANT", "P50", "P95", "P99", "LOAD", "PEAK", "GOLDEN"]
    assert row.split()[0] == "best"
    assert row.endswith("8 right")


@pytest.mark.parametrize("command", ["bench", "selftest"])
@pytest.mark.parametrize(
    ("name", "words"),
    [("elsewhere", f"built for linux/{ELSEWHERE}"), ("rpi9", "the bundle has best, best-fp32")],
)
def test_a_variant_that_does_not_fit_or_is_not_there(cli, tiny, command, name, words):
    ended = cli(command, tiny, "--variant", name)
    assert (ended.code, ended.out) == (7, "")
    assert words in ended.err


def test_over_its_budget_is_exit_code_5_with_the_figures(cli, tmp_path):
    tiny_bundle(tmp_path / "t.edgepack", "1.0.0", budgets=Budgets(latency_ms=1e-6))
    ended = cli("bench", tmp_path / "t.edgepack", "--json", "--rounds", "1")
    assert ended.code == 5
    (one,) = json.loads(ended.out)["variants"]
    assert one["code"] == "latency-budget"
    assert one["p95_ms"] > 0
    assert cli("selftest", tmp_path / "t.edgepack").code == 0


def test_selftest_says_that_the_golden_rows_are_right(cli, tiny, tmp_path):
    ended = cli("selftest", tiny)
    assert (ended.code, ended.out) == (0, "best: 8 golden rows are right (fp32)\n")
    with BundleFile.open(tiny) as file:
        unpack(file, tmp_path / "tree")
    shown = json.loads(cli("selftest", tmp_path / "tree", "--all-variants", "--json").out)
    assert [one["ok"] for one in shown["variants"]] == [True, True]
    for changed in (tmp_path / "tree").rglob("model.onnx"):
        changed.write_bytes(b"another")
    ended = cli("selftest", tmp_path / "tree")
    assert (ended.code, "sha256" in ended.err) == (6, True)


@pytest.mark.parametrize("command", [("selftest",), ("bench", "--rounds", "1")])
def test_wrong_golden_rows_are_exit_code_6(cli, wrong, command):
    ended = cli(command[0], wrong, *command[1:])
    assert ended.code == 6
    assert "values outside" in ended.out


@pytest.mark.parametrize("command", ["selftest", "bench"])
def test_a_model_that_does_not_load_is_exit_code_7(cli, tmp_path, command):
    files = model_files("1.0.0") | {"model.onnx": b"no graph"}
    path = tmp_path / "broken.edgepack"
    write_bundle(path, BundleContent([VariantContent(tiny_description("1.0.0"), files)]))
    ended = cli(command, path)
    assert ended.code == 7
    assert "model.onnx: it is no protobuf message" in ended.out


@pytest.mark.parametrize("command", ["selftest", "bench"])
def test_nothing_that_fits(cli, tmp_path, command):
    path = tmp_path / "other.edgepack"
    other = variant("elsewhere", platform=Platform(architecture=ELSEWHERE))
    write_bundle(path, BundleContent([other]))
    assert cli(command, path).code == 7


@pytest.mark.parametrize("command", ["selftest", "bench"])
def test_wrong_usage(cli, tiny, command, tmp_path):
    assert cli(command, tiny, "--variant", "best", "--all-variants").code == 2
    assert cli(command, tmp_path).code == 6
    shutil.copy(tiny, tmp_path / "cut")
    (tmp_path / "cut").write_bytes(tiny.read_bytes()[:1000])
    assert cli(command, tmp_path / "cut").code == 6


def test_an_unsigned_bundle_is_not_measured_for_who_requires_a_signature(cli, tiny, trust):
    assert cli("bench", tiny, *trust).code == 6
