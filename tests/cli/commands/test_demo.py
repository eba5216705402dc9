"""Where the demo works, and what it says when it ends."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from edgepack_cli.commands import demo
from edgepack_cli.demo.world import DemoFailedError
from edgepack_cli.errors import CommandError


def test_a_temporary_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SOCKET_NAME_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one, two = demo.make_folder(None), demo.make_folder(None)
    assert one != two
    assert {one.parent, two.parent} == {tmp_path}
    assert one.stat().st_mode & 0o777 == 0o700


def test_a_temporary_folder_short_enough_for_sockets(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = demo.make_folder(None)
    folder.rmdir()
    assert folder.parent == Path("/tmp")
    assert list(long.iterdir()) == []


def test_a_folder_to_keep(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SOCKET_NAME_BYTES", 1000)
    monkeypatch.chdir(tmp_path)
    assert demo.make_folder(Path("a/b")) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_to_keep_whose_name_is_too_long(tmp_path):
    folder = tmp_path / ("x" * 90)
    with pytest.raises(CommandError, match="choose a shorter one"):
        demo.make_folder(folder)
    assert not folder.exists()


class Told:
    """A story that ends as the test wants."""

    started = 0.0
    ends = ()

    def __init__(self, *_, **__):
        """Any world will do."""

    def tell(self):
        (end,) = self.ends
        if isinstance(end, BaseException):
            raise end
        return end


@pytest.fixture
def ends(monkeypatch, tmp_path):
    """Makes the demo end in some way, in ``tmp_path``."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "SOCKET_NAME_BYTES", 1000)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)

    def set_end(end):
        monkeypatch.setattr(demo, "Story", Told)
        monkeypatch.setattr(Told, "ends", [end])

    return set_end


@pytest.mark.parametrize(
    ("end", "code", "out", "err"),
    [
        ([], 0, "Everything came true in", ""),
        (["3 requests failed"], 1, "  - 3 requests failed", ""),
        (DemoFailedError("the fleet died"), 1, "", "the demo failed: the fleet died"),
        (TimeoutError("broker did not start"), 1, "", "the demo failed: broker did not start"),
    ],
)
def test_the_exit_code_says_whether_it_came_true(cli, ends, tmp_path, end, code, out, err):
    ends(end)
    ended = cli("demo", "--exit")
    assert ended.code == code
    assert out in ended.out
    assert err in ended.err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(cli, ends, tmp_path):
    ends(KeyboardInterrupt())
    assert cli("demo").code == 130
    assert list(tmp_path.iterdir()) == []


def test_only_known_moments_can_be_killed(cli):
    ended = cli("demo", "--kill", "lunch")
    assert ended.code == 2
    assert "device-install" in ended.err
