"""What a disk may hold after a power cut, worked out from the calls that changed it.

The rules are those of POSIX and no more: the content of a file is durable after its fsync, an entry
of a folder after the fsync of the folder, a rename is atomic. Everything else that was done may be
there or not, in any combination, and what was written to a file may be torn. (Pillai et al., "All
File Systems Are Not Created Equal", OSDI 2014.)
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slot_world import TestCalls


@dataclass
class Node:
    """A file or a folder, as the running system sees it and as the platter has it."""

    is_dir: bool
    data: bytes = b""
    durable: bytes = b""
    entries: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)
    saved: dict[str, Node] = field(default_factory=dict)

    @property
    def dirty(self) -> bool:
        return not self.is_dir and self.data != self.durable


@dataclass(frozen=True)
class Change:
    """One atomic change of entries: (folder, name, what is there afterwards or None)."""

    links: tuple[tuple[Node, str, Node | None], ...]

    def touches(self, folder: Node) -> bool:
        return any(where is folder for where, _, _ in self.links)


class RecordingCalls(TestCalls):
    """Writes down every change of the disk below a folder, in order."""

    __test__ = False

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.log: list[tuple] = []
        self._paths: dict[int, str] = {}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def create(self, path):
        fd = super().create(path)
        self._paths[fd] = self._name(path)
        self.log.append(("create", self._name(path)))
        return fd

    def open_append(self, path):
        new = not path.exists()
        fd = super().open_append(path)
        self._paths[fd] = self._name(path)
        if new:
            self.log.append(("create", self._name(path)))
        return fd

    def write(self, fd, data):
        written = super().write(fd, data)
        self.log.append(("write", self._paths[fd], bytes(data[:written])))
        return written

    def truncate(self, fd, size):
        super().truncate(fd, size)
        self.log.append(("truncate", self._paths[fd], size))

    def fsync(self, fd):
        super().fsync(fd)
        self.log.append(("fsync", self._paths[fd]))

    def replace(self, source, target):
        super().replace(source, target)
        self.log.append(("replace", self._name(source), self._name(target)))

    def unlink(self, path):
        super().unlink(path)
        self.log.append(("unlink", self._name(path)))

    def mkdir(self, path):
        super().mkdir(path)
        self.log.append(("mkdir", self._name(path)))

    def rmdir(self, path):
        super().rmdir(path)
        self.log.append(("unlink", self._name(path)))

    def fsync_dir(self, path):
        super().fsync_dir(path)
        self.log.append(("fsync_dir", self._name(path)))


class Disk:
    """Replays a log and says what a power cut at this moment may leave.

    Args:
        root: A folder whose content is durable at the beginning.
    """

    def __init__(self, root: Path) -> None:
        self.root = _snapshot(root)
        self.pending: list[Change] = []
        self.files: list[Node] = []

    def apply(self, op: tuple) -> None:
        """Do one call of the log."""
        match op:
            case "create", path:
                node = Node(is_dir=False)
                self.files.append(node)
                self._change((path, node))
            case "mkdir", path:
                self._change((path, Node(is_dir=True)))
            case "write", path, data:
                self._at(path).data += data
                self._remember(self._at(path))
            case "truncate", path, size:
                self._at(path).data = self._at(path).data[:size]
                self._remember(self._at(path))
            case "fsync", path:
                self._at(path).durable = self._at(path).data
            case "replace", source, target:
                self._change((source, None), (target, self._at(source)))
            case "unlink", path:
                self._change((path, None))
            case "fsync_dir", path:
                self._sync_dir(self._at(path))

    def cuts(self, rng: random.Random, *, samples: int) -> Iterator[dict[str, bytes | None]]:
        """Trees that a power cut may leave: the extremes, and some in between."""
        everything = [True] * len(self.pending)
        nothing = [False] * len(self.pending)
        yield self._cut(nothing, lambda node: node.durable)
        yield self._cut(everything, lambda node: node.durable)
        yield self._cut(everything, lambda node: node.data[: len(node.data) // 2])
        for _ in range(samples):
            chosen = [rng.random() < 0.5 for _ in self.pending]
            yield self._cut(chosen, lambda node: _torn(node, rng))

    def _cut(self, chosen, content) -> dict[str, bytes | None]:
        for folder in {id(f): f for c in self.pending for f, _, _ in c.links}.values():
            folder.entries, folder.saved = dict(folder.kept), folder.entries
        for change, there in zip(self.pending, chosen, strict=True):
            if there:
                _link(change, durable=False)
        tree = dict(_walk(self.root, "", content))
        for folder in {id(f): f for c in self.pending for f, _, _ in c.links}.values():
            folder.entries = folder.saved
        return tree

    def _at(self, path: str) -> Node:
        node = self.root
        for part in path.split("/") if path != "." else ():
            node = node.entries[part]
        return node

    def _change(self, *changes: tuple[str, Node | None]) -> None:
        links = []
        for path, node in changes:
            parent, _, name = path.rpartition("/")
            links.append((self._at(parent or "."), name, node))
        change = Change(tuple(links))
        self.pending.append(change)
        _link(change, durable=False)

    def _remember(self, node: Node) -> None:
        if not any(node is one for one in self.files):
            self.files.append(node)

    def _sync_dir(self, folder: Node) -> None:
        for change in [one for one in self.pending if one.touches(folder)]:
            _link(change, durable=True)
            self.pending.remove(change)


def materialise(tree: dict[str, bytes | None], root: Path) -> None:
    """Write a tree to a folder; None stands for a folder."""
    root.mkdir(parents=True)
    for path, data in tree.items():
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)


def _link(change: Change, *, durable: bool) -> None:
    for folder, name, node in change.links:
        entries = folder.kept if durable else folder.entries
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _torn(node: Node, rng: random.Random) -> bytes:
    if not node.dirty:
        return node.durable
    half = node.data[: rng.randrange(len(node.data) + 1)]
    return rng.choice([node.durable, node.data, half, bytes(len(node.data))])


def _walk(node: Node, path: str, content) -> Iterator[tuple[str, bytes | None]]:
    for name, child in sorted(node.entries.items()):
        below = f"{path}/{name}" if path else name
        if child.is_dir:
            yield below, None
            yield from _walk(child, below, content)
        else:
            yield below, content(child) if child.dirty else child.durable


def _snapshot(path: Path) -> Node:
    if not path.is_dir():
        data = path.read_bytes()
        return Node(is_dir=False, data=data, durable=data)
    entries = {child.name: _snapshot(child) for child in path.iterdir()}
    return Node(is_dir=True, entries=entries, kept=dict(entries))
