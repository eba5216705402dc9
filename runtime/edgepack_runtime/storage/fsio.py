"""All file changes of installs, journals and the store: one place to make durable, and to break.

What a crash may leave behind: the old file or the new one, whole, plus temporaries whose names hold
``.tmp-``, which :meth:`DurableFS.clean_temporaries` removes at the next start. A rename or a
removal is durable when the call returns.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepack_contract.digest import CHUNK_BYTES
from edgepack_runtime.errors import DeviceError, DiskFullError, StorageFaultError

TEMPORARY = ".tmp-"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_APPEND = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class Syscalls:
    """The calls that change a disk, one method each; tests record, replay and break them here."""

    def create(self, path: Path) -> int:
        """Make a file that must not exist yet; returns its descriptor."""
        return os.open(path, _NEW, 0o600)

    def open_append(self, path: Path) -> int:
        """Open a file to write at its end, making it when missing."""
        return os.open(path, _APPEND, 0o600)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write some of ``data``; returns how many bytes."""
        return os.write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file to ``size`` bytes."""
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        """Make a file's content durable."""
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Make what was written to a file durable, and its size."""
        os.fdatasync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, replacing what is there."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Make a folder that must not exist yet."""
        path.mkdir(mode=0o700)

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def fsync_dir(self, path: Path) -> None:
        """Make the entries of a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Appending:
    """A file being written at its end; nothing counts before :meth:`finish`."""

    def __init__(self, fs: DurableFS, path: Path, fd: int) -> None:
        self._fs, self._path, self._fd = fs, path, fd
        self._named = False

    def write(self, data: bytes) -> None:
        """Append all of ``data``.

        Raises:
            DiskFullError: No room.
            StorageFaultError: The disk failed.
        """
        self._fs.write_all(self._fd, self._path, data)

    def restart(self) -> None:
        """Forget what was written so far."""
        with self._fs.blaming(self._path):
            self._fs.calls.truncate(self._fd, 0)

    def flush(self) -> None:
        """Make what was written so far outlive a power cut, in the midst of a long file.

        Raises:
            StorageFaultError: The disk failed.
        """
        with self._fs.blaming(self._path, final=True):
            self._fs.calls.fdatasync(self._fd)
        if not self._named:
            self._fs.fsync_dir(self._path.parent)
            self._named = True

    def finish(self) -> None:
        """Make the content durable.

        Raises:
            StorageFaultError: The disk failed.
        """
        self._fs.sync(self._fd, self._path)


class DurableFS:
    """File changes in the order that survives a power cut.

    After a failed fsync the kernel may have dropped the data and marked it clean, so that a second
    fsync would succeed and lie (the "fsyncgate" of PostgreSQL, 2018). Hence no call is repeated:
    the object refuses every later change until the process starts anew.

    Args:
        calls: What touches the disk.
    """

    def __init__(self, calls: Syscalls | None = None) -> None:
        self.calls = calls or Syscalls()
        self._fault: str | None = None
        self._temporaries = 0

    @property
    def fault(self) -> str | None:
        """Why nothing can be written any more, or None."""
        return self._fault

    def atomic_write(self, path: Path, data: bytes) -> None:
        """Put ``data`` at ``path``: after a crash there is the old content or the new.

        Raises:
            DiskFullError: No room; the old content stands.
            StorageFaultError: The disk failed; nothing more will be written.
        """
        self._temporaries += 1
        temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}-{self._temporaries}")
        try:
            self._write_new(temporary, data)
            with self.blaming(path):
                self.calls.replace(temporary, path)
        except (DiskFullError, StorageFaultError):
            temporary.unlink(missing_ok=True)
            raise
        self.fsync_dir(path.parent)

    @contextmanager
    def appending(self, path: Path) -> Iterator[Appending]:
        """Open ``path`` to go on writing at its end.

        Raises:
            DiskFullError: No room.
            StorageFaultError: The disk failed.
        """
        with self.blaming(path):
            fd = self.calls.open_append(path)
        try:
            yield Appending(self, path, fd)
        finally:
            self.calls.close(fd)

    def make_dirs(self, path: Path) -> None:
        """Make a folder and the missing ones above it, durably.

        Raises:
            DiskFullError: No room.
            StorageFaultError: The disk failed.
        """
        if path.is_dir():
            return
        self.make_dirs(path.parent)
        with self.blaming(path):
            self.calls.mkdir(path)
        self.fsync_dir(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Move a file or a folder to a name that is free, durably.

        Raises:
            DiskFullError: No room.
            StorageFaultError: The disk failed.
        """
        with self.blaming(target):
            self.calls.replace(source, target)
        self.fsync_dir(target.parent)
        self.fsync_dir(source.parent)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all below it; links are removed, not followed.

        Raises:
            StorageFaultError: The disk failed.
        """
        if not os.path.lexists(path):
            return
        with self.blaming(path):
            self._remove(path)
        self.fsync_dir(path.parent)

    def sync_tree(self, path: Path) -> None:
        """Make the entries of a folder and of all folders below it durable, deepest first."""
        for child in sorted(path.iterdir()):
            if child.is_dir() and not child.is_symlink():
                self.sync_tree(child)
        self.fsync_dir(path)

    def read_bounded(self, path: Path, *, max_bytes: int) -> bytes:
        """The content of a regular file that has at most ``max_bytes``.

        Raises:
            FileNotFoundError: There is none.
            DeviceError: It is larger, not a regular file, or cannot be read.
        """
        try:
            with open_regular(path) as fd:
                return _read_all(fd, path, max_bytes)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageFaultError(f"cannot read {path}: {error}") from error

    def fsync_dir(self, path: Path) -> None:
        """Make the entries of one folder durable."""
        with self.blaming(path, final=True):
            self.calls.fsync_dir(path)

    def free_bytes(self, path: Path) -> int:
        """How many bytes this process may still write below ``path``."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def clean_temporaries(self, folder: Path, *, of: str = "*") -> None:
        """Remove what interrupted writes of an earlier process left in ``folder``.

        Args:
            folder: Where.
            of: The name of the file that was to be written; in folders that are not ours alone.
        """
        for path in sorted(folder.glob(f"{of}{TEMPORARY}*")):
            with self.blaming(path):
                self.calls.unlink(path)

    def write_all(self, fd: int, path: Path, data: bytes) -> None:
        """Write every byte of ``data``, however short the single writes are."""
        left = memoryview(data)
        while left:
            with self.blaming(path):
                left = left[self.calls.write(fd, left) :]

    def sync(self, fd: int, path: Path) -> None:
        """Make one open file durable; tried once."""
        with self.blaming(path, final=True):
            self.calls.fsync(fd)

    @contextmanager
    def blaming(self, path: Path, *, final: bool = False) -> Iterator[None]:
        """Turn what the system says of ``path`` into the error of the disk.

        With ``final`` a failure other than a lack of room ends all writing of this object.
        """
        if self._fault:
            raise StorageFaultError(self._fault)
        try:
            yield
        except OSError as error:
            raise self._blame(error, path, final=final) from error

    def _blame(self, error: OSError, path: Path, *, final: bool) -> DeviceError:
        if error.errno in _NO_ROOM:
            return DiskFullError(f"no room to write {path}: {error.strerror}; free some space")
        text = f"the disk failed at {path}: {error}; check or replace it, then restart the daemon"
        if final or error.errno == errno.EIO:
            self._fault = text
        return StorageFaultError(text)

    def _write_new(self, path: Path, data: bytes) -> None:
        with self.blaming(path):
            fd = self.calls.create(path)
        try:
            self.write_all(fd, path, data)
            self.sync(fd, path)
        finally:
            self.calls.close(fd)

    def _remove(self, path: Path) -> None:
        if path.is_symlink() or not path.is_dir():
            self.calls.unlink(path)
            return
        for child in sorted(path.iterdir()):
            self._remove(child)
        self.calls.rmdir(path)


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A read-only descriptor of a regular file; links, pipes and devices are refused.

    Raises:
        OSError: It cannot be opened, or is something else.
    """
    fd = os.open(path, _READ | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield fd
    finally:
        os.close(fd)


def _read_all(fd: int, path: Path, max_bytes: int) -> bytes:
    parts, size = [], 0
    while chunk := os.read(fd, min(CHUNK_BYTES, max_bytes + 1 - size)):
        parts.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise DeviceError(
                f"{path} has more than {max_bytes} bytes, which is the most it may have",
                code="too-large",
            )
    return b"".join(parts)
