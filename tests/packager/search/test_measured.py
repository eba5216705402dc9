"""Figures of a device: whose they are, and what they are of."""

from pathlib import Path

import pytest
from tests.packager.test_targets import PI, machine

from edgepack_contract.benchmark import Benchmark, VariantBench
from edgepack_contract.canonical import canonical_json
from edgepack_packager.errors import InputError
from edgepack_packager.search.measured import (
    measured_on,
    read_measured,
    strangers,
    unknown_models,
)
from edgepack_packager.targets import load_target

PI5 = machine("arm64", *PI, model="Raspberry Pi 5 Model B Rev 1.0")
RPI5 = load_target("rpi5")
FAST, SLOW, BROKEN = ("sha256:" + digit * 64 for digit in "123")


def bench(host=PI5, p50=1.0):
    return Benchmark(
        edgepack="1.0.0", name="m", version="1.0.0", digest=FAST, host=host, threads=2, rounds=3,
        variants=[
            VariantBench(
                variant="rpi5", model_digest=FAST, p50_ms=p50, p95_ms=2.0, p99_ms=3.0,
                peak_bytes=5000, rows=64,
            ),
            VariantBench(
                variant="rpi5-alt1", model_digest=BROKEN, code="golden-mismatch", words="row 3",
            ),
        ],
    )  # fmt: skip


def test_figures_are_found_by_the_digest_of_the_model():
    found = measured_on(RPI5, [(Path("a.json"), bench())])
    assert found.host == PI5
    assert found.latency(FAST).p95_ms == 2.0
    assert found.memory_bytes(FAST) == 5000
    assert found.latency(SLOW) is None
    assert found.failed(BROKEN) == "golden-mismatch: row 3"
    assert found.failed(FAST) == found.failed(SLOW) == ""


def test_the_last_file_of_several_wins():
    found = measured_on(RPI5, [(Path("a"), bench(p50=1.0)), (Path("b"), bench(p50=4.0))])
    assert found.latency(FAST).p50_ms == 4.0


def test_another_kind_of_machine_is_said_and_not_used():
    xeon = [(Path("x.json"), bench(machine("amd64", "sse4_2", model="a server")))]
    assert measured_on(RPI5, xeon).host is None
    (words,) = strangers(xeon, [RPI5])
    assert "x.json was measured on a server (amd64)" in words
    assert "rpi5" in words
    assert strangers([(Path("a"), bench())], [RPI5]) == []


def test_models_that_are_no_candidates_are_named():
    (words,) = unknown_models([(Path("a"), bench())], {FAST})
    assert "rpi5-alt1" in words
    assert unknown_models([(Path("a"), bench())], {FAST, BROKEN}) == []


@pytest.mark.parametrize("content", [b"{}", b"no json", b"x" * 300_000, None])
def test_what_is_no_benchmark_is_refused(tmp_path, content):
    path = tmp_path / "m.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.json is not what edgepack bench") as caught:
        read_measured([path])
    assert caught.value.code == "bad-measured"


def test_a_benchmark_is_read(tmp_path):
    path = tmp_path / "m.json"
    path.write_bytes(canonical_json(bench()))
    assert read_measured([path]) == [(path, bench())]
