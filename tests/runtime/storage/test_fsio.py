"""The order of calls that makes a change durable, and what a failing disk leads to."""

from __future__ import annotations

import errno
import os

import pytest
from power_loss import RecordingCalls

from edgepack_runtime.errors import DeviceError, DiskFullError, StorageFaultError
from edgepack_runtime.storage.fsio import DurableFS


@pytest.fixture
def calls(tmp_path):
    return RecordingCalls(tmp_path)


@pytest.fixture
def fs(calls):
    return DurableFS(calls)


def names(calls):
    return [op.call for op in calls.log]


def said(calls):
    return [(op.call, op.path, op.more) if op.more else (op.call, op.path) for op in calls.log]


def test_an_atomic_write_syncs_the_file_before_the_rename_and_the_folder_after(fs, calls, tmp_path):
    fs.atomic_write(tmp_path / "CURRENT", b"state")
    assert names(calls) == ["create", "write", "fsync", "replace", "fsync_dir"]
    assert said(calls)[-1] == ("fsync_dir", ".")
    assert (tmp_path / "CURRENT").read_bytes() == b"state"
    assert [path.name for path in tmp_path.iterdir()] == ["CURRENT"]
    assert (tmp_path / "CURRENT").stat().st_mode & 0o777 == 0o600


def test_short_writes_are_gone_on_with(fs, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "write", lambda fd, data: os.write(fd, data[:3]))
    fs.atomic_write(tmp_path / "CURRENT", b"0123456789")
    assert (tmp_path / "CURRENT").read_bytes() == b"0123456789"


@pytest.mark.parametrize("call", ["create", "write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_leaves_the_old_content_and_no_litter(fs, calls, tmp_path, call, number):
    fs.atomic_write(tmp_path / "CURRENT", b"old")
    calls.fault = fail(call, number)
    with pytest.raises(DiskFullError, match="CURRENT"):
        fs.atomic_write(tmp_path / "CURRENT", b"new")
    calls.fault = None
    assert (tmp_path / "CURRENT").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    fs.atomic_write(tmp_path / "CURRENT", b"new")
    assert (tmp_path / "CURRENT").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["fsync", "fsync_dir"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_failed_fsync_is_never_repeated_and_ends_all_writing(fs, calls, tmp_path, call, number):
    calls.fault = fail(call, number)
    with pytest.raises(StorageFaultError):
        fs.atomic_write(tmp_path / "CURRENT", b"new")
    calls.fault = None
    done = len(calls.log)
    for change in (
        lambda: fs.atomic_write(tmp_path / "OTHER", b"new"),
        lambda: fs.make_dirs(tmp_path / "folder"),
        lambda: fs.fsync_dir(tmp_path),
    ):
        with pytest.raises(StorageFaultError, match="disk failed"):
            change()
    assert len(calls.log) == done
    assert fs.fault


def fail(call, number):
    def fault(name, _count):
        if name == call:
            raise OSError(number, os.strerror(number))

    return fault


def test_folders_are_durable_one_by_one(fs, calls, tmp_path):
    fs.make_dirs(tmp_path / "a" / "b")
    assert said(calls) == [
        ("mkdir", "a"), ("fsync_dir", "."), ("mkdir", "a/b"), ("fsync_dir", "a"),
    ]  # fmt: skip
    fs.make_dirs(tmp_path / "a" / "b")
    assert len(calls.log) == 4


def test_a_renamed_folder_is_durable_on_both_sides(fs, calls, tmp_path):
    fs.make_dirs(tmp_path / "staging" / "x")
    fs.make_dirs(tmp_path / "store")
    calls.log.clear()
    fs.rename(tmp_path / "staging" / "x", tmp_path / "store" / "x")
    assert said(calls) == [
        ("replace", "staging/x", "store/x"), ("fsync_dir", "store"), ("fsync_dir", "staging"),
    ]  # fmt: skip


def test_removing_a_tree_does_not_follow_links(fs, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("stays")
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").write_text("goes")
    (tree / "link").symlink_to(outside)
    fs.remove_tree(tree)
    assert not tree.exists()
    assert (outside / "precious").read_text() == "stays"
    fs.remove_tree(tree)


def test_appending_goes_on_where_it_was_and_can_begin_anew(fs, tmp_path):
    path = tmp_path / "part"
    for word in (b"one ", b"two"):
        with fs.appending(path) as file:
            file.write(word)
            file.finish()
    assert path.read_bytes() == b"one two"
    with fs.appending(path) as file:
        file.restart()
        file.write(b"three")
        file.finish()
    assert path.read_bytes() == b"three"


def test_appending_refuses_a_link(fs, tmp_path):
    (tmp_path / "target").write_text("x")
    (tmp_path / "part").symlink_to(tmp_path / "target")
    with pytest.raises(StorageFaultError), fs.appending(tmp_path / "part"):
        pytest.fail("a link was opened")
    assert fs.fault is None


def test_reading_is_bounded_and_takes_regular_files_only(fs, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert fs.read_bounded(path, max_bytes=5) == b"12345"
    with pytest.raises(DeviceError, match="more than 4 bytes"):
        fs.read_bounded(path, max_bytes=4)
    with pytest.raises(FileNotFoundError):
        fs.read_bounded(tmp_path / "none", max_bytes=4)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(path)
    for odd in ("pipe", "link", "."):
        with pytest.raises(StorageFaultError):
            fs.read_bounded(tmp_path / odd, max_bytes=4)


def test_only_temporaries_are_cleaned_away(fs, tmp_path):
    (tmp_path / "CURRENT.tmp-77-1").write_text("half")
    (tmp_path / "CURRENT").write_text("whole")
    fs.clean_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["CURRENT"]


def test_free_space_is_a_number_of_bytes(fs, tmp_path):
    assert fs.free_bytes(tmp_path) > 4096
