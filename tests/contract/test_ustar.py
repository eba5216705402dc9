from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.errors import ConfigError, MalformedBundleError
from edgepack_contract.limits import LIMITS
from edgepack_contract.ustar import (
    BLOCK_BYTES,
    MAX_FILE_BYTES,
    NewEntry,
    UstarReader,
    is_entry_name,
    source_date,
    write_ustar,
)

SAMPLE = {"oci-layout": b"{}", "empty": b"", "a/b/c": b"x" * 513, "block": b"y" * 512}


def new(name: str, data: bytes) -> NewEntry:
    return NewEntry(name=name, size=len(data), open=partial(io.BytesIO, data))


def archive(files: dict[str, bytes], mtime: int = 0) -> bytes:
    stream = io.BytesIO()
    write_ustar(stream, [new(name, data) for name, data in files.items()], mtime=mtime)
    return stream.getvalue()


def read_all(path: Path) -> dict[str, bytes]:
    with UstarReader.open(path) as reader:
        return {name: reader.read(name, max_bytes=2**20) for name in reader.entries}


def refuse(path: Path, raw: bytes, rule: str) -> None:
    path.write_bytes(raw)
    with pytest.raises(MalformedBundleError) as refusal:
        read_all(path)
    assert rule in str(refusal.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.edgepack"


def test_round_trip(path):
    path.write_bytes(archive(SAMPLE))
    assert read_all(path) == SAMPLE
    with UstarReader.open(path) as reader, reader.stream("a/b/c") as stream:
        assert stream.read(500) + stream.read() == SAMPLE["a/b/c"]
        assert stream.read() == b""


names = st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,20}(/[a-z0-9][a-z0-9._-]{0,20}){0,2}\Z")


@given(st.dictionaries(names, st.binary(max_size=1500), max_size=8), st.integers(0, 2**33 - 1))
def test_what_is_written_is_read_back(tmp_path_factory, files, mtime):
    path = tmp_path_factory.mktemp("archive") / "a"
    path.write_bytes(archive(files, mtime))
    assert read_all(path) == files
    with tarfile.open(path) as other:
        found = {member.name: member for member in other.getmembers()}
        assert {name: other.extractfile(found[name]).read() for name in found} == files
        assert {member.mtime for member in found.values()} <= {mtime}


def test_streams_do_not_disturb_each_other_and_outlive_the_archive(path):
    path.write_bytes(archive(SAMPLE))
    with UstarReader.open(path) as reader:
        first, second = reader.stream("a/b/c"), reader.stream("block")
    with first, second:
        assert first.read(3) + second.read(3) + first.read(3) == b"xxxyyyxxx"
    reader.close()


def test_gnu_tar_reads_it(path, tmp_path):
    path.write_bytes(archive(SAMPLE, mtime=1_700_000_000))
    tar = shutil.which("tar")
    assert tar is not None
    subprocess.run([tar, "-xf", path, "-C", tmp_path], check=True)
    assert {name: (tmp_path / name).read_bytes() for name in SAMPLE} == SAMPLE
    assert (tmp_path / "block").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "block").stat().st_mtime == 1_700_000_000


def test_reads_what_gnu_tar_writes_as_told(path, tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    command = ["tar", "--format=ustar", "--owner=0", "--group=0", "--numeric-owner", "--mode=0644"]
    subprocess.run([*command, "-b1", "-cf", path, "-C", tmp_path, "f"], check=True)
    assert read_all(path) == {"f": b"content"}


def header(**changes: bytes) -> bytes:
    """An archive of one file ``f`` whose header has other fields and a checksum that fits."""
    places = {
        "name": (0, 100), "mode": (100, 108), "uid": (108, 116), "gid": (116, 124),
        "size": (124, 136), "mtime": (136, 148), "kind": (156, 157), "link": (157, 257),
        "magic": (257, 265), "uname": (265, 297), "gname": (297, 329), "device": (329, 345),
        "prefix": (345, 500), "rest": (500, 512),
    }  # fmt: skip
    raw = bytearray(archive({"f": b"data"}))
    for field, value in changes.items():
        start, end = places[field]
        raw[start:end] = value.ljust(end - start, b"\0")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:BLOCK_BYTES])
    return bytes(raw)


def test_the_header_builder_of_these_tests_changes_nothing_by_itself(path):
    assert header() == archive({"f": b"data"})
    path.write_bytes(header(mtime=b"%011o\0" % 7))
    assert read_all(path) == {"f": b"data"}


BROKEN_HEADERS = {
    "name absolute": ({"name": b"/f"}, "name"),
    "name escapes": ({"name": b"../f"}, "name"),
    "name escapes inside": ({"name": b"a/../f"}, "name"),
    "name upper case": ({"name": b"F"}, "name"),
    "name not ascii": ({"name": "é".encode()}, "name"),
    "name empty": ({"name": b""}, "name"),
    "name hides bytes behind its end": ({"name": b"f\0g"}, "name"),
    "name a folder": ({"name": b"f/"}, "name"),
    "name four deep": ({"name": b"a/b/c/d"}, "name"),
    "setuid": ({"mode": b"0004755"}, "mode"),
    "user": ({"uid": b"0001000"}, "user id"),
    "group": ({"gid": b"0001000"}, "group id"),
    "size base-256": ({"size": b"\x80" + bytes(10) + b"\x04"}, "size"),
    "size negative": ({"size": b"-0000000004"}, "size"),
    "size with spaces": ({"size": b"         4 "}, "size"),
    "size decimal": ({"size": b"00000000009"}, "size"),
    "size without end": ({"size": b"000000000004"}, "size"),
    "size beyond the archive": ({"size": b"00000010000"}, "reach beyond the end"),
    "size of 8 GiB less one": ({"size": b"77777777777"}, "reach beyond the end"),
    "time base-256": ({"mtime": b"\x80" + bytes(10) + b"\x04"}, "time"),
    "time negative": ({"mtime": b"-0000000001"}, "time"),
    "kind old file": ({"kind": b"\0"}, "regular files"),
    "kind hard link": ({"kind": b"1", "link": b"x"}, "regular files"),
    "kind symbolic link": ({"kind": b"2", "link": b"/etc/passwd"}, "regular files"),
    "kind character device": ({"kind": b"3"}, "regular files"),
    "kind block device": ({"kind": b"4"}, "regular files"),
    "kind folder": ({"kind": b"5"}, "regular files"),
    "kind fifo": ({"kind": b"6"}, "regular files"),
    "kind contiguous": ({"kind": b"7"}, "regular files"),
    "kind long name": ({"kind": b"L"}, "regular files"),
    "kind long link": ({"kind": b"K"}, "regular files"),
    "kind pax": ({"kind": b"x"}, "regular files"),
    "kind pax global": ({"kind": b"g"}, "regular files"),
    "kind sparse": ({"kind": b"S"}, "regular files"),
    "link name": ({"link": b"x"}, "link name"),
    "magic of gnu": ({"magic": b"ustar  \0"}, "magic"),
    "magic of v7": ({"magic": b""}, "magic"),
    "user name": ({"uname": b"root"}, "user name"),
    "group name": ({"gname": b"root"}, "group name"),
    "device": ({"device": b"0000001\x000000000\0"}, "device number"),
    "prefix": ({"prefix": b"a"}, "prefix"),
    "bytes after the fields": ({"rest": b"a"}, "padding"),
}


@pytest.mark.parametrize(("changes", "rule"), BROKEN_HEADERS.values(), ids=BROKEN_HEADERS)
def test_a_broken_header_is_refused_with_its_rule(path, changes, rule):
    refuse(path, header(**changes), rule)


def test_wrong_checksum(path):
    raw = bytearray(archive({"f": b""}))
    raw[150] ^= 1
    refuse(path, bytes(raw), "checksum")


def test_padding_must_be_zero(path):
    raw = bytearray(archive({"f": b"data"}))
    raw[BLOCK_BYTES + 100] = 1
    refuse(path, bytes(raw), "padding")


@pytest.mark.parametrize(
    "raw",
    [
        archive(SAMPLE) + bytes(512),
        archive(SAMPLE) + b"x" * 512,
        archive(SAMPLE) + archive({"other": b""}),
        archive(SAMPLE)[:-512],
        archive(SAMPLE)[:-1024],
        archive(SAMPLE)[:-1] + b"x",
        bytes(512),
        bytes(1536),
        b"",
        b"x" * 511,
        b"PK\x03\x04" + bytes(1020),
    ],
)
def test_the_end_must_be_two_zero_blocks_and_nothing_else(path, raw):
    refuse(path, raw, "")


@pytest.mark.parametrize("length", range(0, len(archive(SAMPLE)), 64))
def test_every_truncation_is_refused(path, length):
    refuse(path, archive(SAMPLE)[:length], "")


def test_a_name_may_not_be_there_twice(path):
    one = archive({"f": b"1"})[: 2 * BLOCK_BYTES]
    refuse(path, one + one + bytes(1024), "f: is there twice")


def test_number_of_entries_is_limited(path):
    many = {str(number): b"" for number in range(LIMITS.bundle_entries + 1)}
    refuse(path, archive(many), "entries")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_other_programs_with_long_names(path, form):
    with tarfile.open(path, "w", format=form) as other:
        member = tarfile.TarInfo("a" * 120)
        other.addfile(member, io.BytesIO())
    refuse(path, path.read_bytes(), "no entry may have this name")


def test_symbolic_link_fifo_and_folder_are_not_opened(tmp_path, path):
    path.write_bytes(archive(SAMPLE))
    link = tmp_path / "link"
    link.symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    for other in (link, tmp_path / "fifo", tmp_path):
        with pytest.raises(MalformedBundleError):
            UstarReader.open(other)
    with pytest.raises(FileNotFoundError):
        UstarReader.open(tmp_path / "missing")


def test_a_failed_open_leaves_no_descriptor(path):
    path.write_bytes(b"not an archive")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(MalformedBundleError):
        UstarReader.open(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_reading_is_bounded_and_notices_a_file_cut_off_since(path):
    path.write_bytes(archive(SAMPLE))
    with UstarReader.open(path) as reader:
        with pytest.raises(MalformedBundleError, match="at most 512"):
            reader.read("a/b/c", max_bytes=512)
        with pytest.raises(MalformedBundleError, match="missing"):
            reader.read("nothing", max_bytes=512)
        os.truncate(path, 1024)
        with pytest.raises(MalformedBundleError, match="cut off"):
            reader.read("block", max_bytes=512)
        with reader.stream("block") as stream:
            assert stream.read() == b""


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/b/c/d", "A", "a" * 101, "a\n", ".a", "é"])
def test_the_writer_refuses_names_that_the_reader_refuses(name):
    assert not is_entry_name(name)
    with pytest.raises(ValueError, match="name"):
        archive({name: b""})


def test_the_writer_refuses_what_it_cannot_say():
    stream = io.BytesIO()
    with pytest.raises(ValueError, match="twice"):
        write_ustar(stream, [new("a", b""), new("a", b"")], mtime=0)
    big = NewEntry(name="a", size=MAX_FILE_BYTES + 1, open=io.BytesIO)
    with pytest.raises(ValueError, match="at most"):
        write_ustar(stream, [big], mtime=0)
    for size in (1, 3):
        with pytest.raises(ValueError, match="source"):
            write_ustar(
                stream, [NewEntry(name="a", size=size, open=partial(io.BytesIO, b"12"))], mtime=0
            )


def test_source_date(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert source_date() == 0
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert source_date() == 1_700_000_000
    for wrong in ("", "-1", "1.5", "yesterday", "²", str(8**11)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH"):
            source_date()
