"""What the machine says of itself, and what it does not know."""

from __future__ import annotations

import pytest

from edgepack_runtime import machine_state


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Where the kernel's files would be, empty at first."""
    monkeypatch.setattr(machine_state, "_THERMAL", tmp_path / "temp")
    monkeypatch.setattr(machine_state, "_THROTTLED", tmp_path / "get_throttled")
    return tmp_path


def test_this_machine_is_known(tmp_path):
    state = machine_state.look(tmp_path)
    assert state.memory_available_bytes > 2**20
    assert 2**20 < state.memory_rss_bytes < 2**40
    assert state.disk_free_bytes > 0
    assert len(machine_state.boot_id()) == 36
    assert machine_state.boot_id() == machine_state.boot_id()


def test_what_is_not_there_is_none(files):
    state = machine_state.look(files / "no" / "such" / "folder")
    assert (state.cpu_celsius, state.throttled, state.disk_free_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "celsius"),
    [("48312\n", 48.312), ("-5000", -5.0), ("0", 0.0), ("", None), ("hot", None), ("--5", None),
     ("\xb2", None), ("-", None)],
)  # fmt: skip
def test_heat_is_in_thousandths(files, text, celsius):
    (files / "temp").write_text(text, encoding="utf-8")
    assert machine_state.look(files).cpu_celsius == celsius


@pytest.mark.parametrize(
    ("text", "throttled"),
    [("0", False), ("0x0", False), ("50005", True), ("0x50000\n", False), ("8", True),
     ("nonsense", None), ("", None)],
)  # fmt: skip
def test_only_what_holds_now_is_throttling(files, text, throttled):
    """The upper bits say that it has happened since the boot: a hot summer ago is no reason."""
    (files / "get_throttled").write_text(text, encoding="utf-8")
    assert machine_state.look(files).throttled is throttled


def test_bytes_that_are_no_text_are_unknown(files):
    (files / "temp").write_bytes(b"\xff\xfe\x00")
    assert machine_state.look(files).cpu_celsius is None
