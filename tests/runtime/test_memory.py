"""Whether a model fits: by what the probe measured, in what machine and control groups leave."""

from __future__ import annotations

import pytest

from edgepack_contract.canonical import canonical_json
from edgepack_runtime import machine_state, memory
from edgepack_runtime.inference.probe import ProbeResult

MIB = 2**20


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "store" / "abc" / "model"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes(1000))
    (folder / "model.onnx.data").write_bytes(bytes(9000))
    return folder


def measured(folder, **figures):
    tried = [{"variant": "generic", "result": ProbeResult(code="", **figures)}]
    (folder.parent / "tried.json").write_bytes(canonical_json(tried))


def test_without_figures_the_files_are_the_measure(folder):
    assert memory.needed_bytes(folder) == 30_000
    measured(folder, peak_bytes=100 * MIB)
    assert memory.needed_bytes(folder) == 30_000


def test_what_the_probe_measured_counts_with_a_margin(folder):
    measured(folder, model_bytes=100 * MIB, peak_bytes=150 * MIB)
    assert memory.needed_bytes(folder) == 125 * MIB


def test_a_model_fits_when_the_reserve_stays(folder, monkeypatch):
    measured(folder, model_bytes=100 * MIB)
    enough = 125 * MIB + memory.RESERVE_BYTES
    for available, fits in ((enough, True), (enough - 1, False), (None, True)):
        monkeypatch.setattr(memory, "available_bytes", lambda available=available: available)
        assert memory.fits(folder) is fits


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """``groups("a", max="..", ...)`` writes the files of a control group."""
    root = tmp_path / "cgroup"
    monkeypatch.setattr(memory, "_CGROUPS", root)
    read = memory._read
    own = ["0::/a/b"]
    monkeypatch.setattr(memory, "_read", lambda path: own if path.name == "cgroup" else read(path))

    def write(group, **files):
        (root / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / group / f"memory.{name}").write_text(text)

    return write


def test_the_tightest_control_group_counts(groups):
    assert memory._left_by_groups() is None
    groups("a/b", max="max\n", current="5000\n", stat="")
    assert memory._left_by_groups() is None
    groups(
        "a", max="10000\n", current="7000\n", stat="anon 1\nactive_file 500\ninactive_file 1500\n"
    )
    assert memory._left_by_groups() == 5000
    groups("a/b", max="100\n", current="7000\n", stat="")
    assert memory._left_by_groups() == 0
    assert memory.available_bytes() == 0


def test_control_groups_of_version_1_count(groups, monkeypatch):
    own = ["12:cpu,cpuacct:/a", "4:hugetlb,memory:/a/b", "0::/a/b"]
    read = memory._read
    monkeypatch.setattr(memory, "_read", lambda path: own if path.name == "cgroup" else read(path))
    groups("memory", limit_in_bytes=f"{2**63 - 4096}\n", usage_in_bytes="9\n", stat="")
    assert memory.available_bytes() == machine_state.look(memory.Path("/")).memory_available_bytes
    stat = "inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 1500\n"
    groups("memory/a", limit_in_bytes="10000\n", usage_in_bytes="7000\n", stat=stat)
    assert memory.available_bytes() == 5000


def test_a_machine_that_says_nothing_is_not_guessed_at(groups, monkeypatch):
    monkeypatch.setattr(machine_state, "_kib_field", lambda *_: None)
    assert memory.available_bytes() is None
