"""What a disk may hold after a power cut, worked out from the calls that changed it.

The rules are those of POSIX and of journalling file systems, and no more: what was written to a
file is durable after its fsync, an entry of a folder after the fsync of that folder, a rename is
atomic and durable after the fsync of the folder that it goes to. Everything else that was done may
be there or not, in any combination, and what was written last may be torn. (Pillai et al., "All
File Systems Are Not Created Equal", OSDI 2014.)
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from slot_world import TestCalls

EXHAUSTIVE = 6
"""Up to so many pending operations every combination is tried, else :data:`SAMPLES` of them."""
SAMPLES = 200
SECTOR = 512

Tree = dict[str, bytes | None]


class Op(NamedTuple):
    """One call: its name, the path, what else it was given, and the function that asked for it."""

    call: str
    path: str
    more: object = None
    site: str = ""

    @property
    def kind(self) -> str:
        """The class of calls that stands or falls with one line of the code."""
        path = str(self.more) if self.call == "replace" else self.path
        return f"{self.call} {shape(path)} by {self.site}"


def shape(path: str) -> str:
    """A path without what differs from file to file."""
    path = re.sub(r"\.tmp-\d+-\d+", ".tmp", re.sub(r"[0-9a-f]{64}", "<digest>", path))
    return re.sub(r"(/(?:proof|model))/.*", r"\1/*", path)


@dataclass(eq=False)
class Node:
    """A file or a folder, as the running system sees it and as the platter has it."""

    is_dir: bool
    data: bytes = b""
    durable: bytes = b""
    unsynced: list[tuple[str, int, bytes]] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)
    saved: dict[str, Node] = field(default_factory=dict)

    def do(self, what: str, where: int, data: bytes) -> None:
        """Change the content; it may or may not reach the platter."""
        self.unsynced.append((what, where, data))
        self.data = _changed(self.data, what, where, data)

    def sync(self) -> None:
        """Make the content durable."""
        self.durable, self.unsynced = self.data, []

    def may_hold(self) -> list[bytes]:
        """What the platter may have of a file: nothing new, all, or something between."""
        found = [self.durable, self.data]
        *before, last = self.unsynced
        base = self.durable
        for one in before:
            base = _changed(base, *one)
        what, where, data = last
        torn = {0, SECTOR, len(data) // 2} if what == "write" else {0}
        found += [_changed(base, what, where, data[:cut]) for cut in sorted(torn)]
        if what == "write":
            # the size is there, the bytes are not: the classic file of zeros
            found.append(_changed(base, what, where, bytes(len(data))))
        for left_out in range(len(before)):
            content = self.durable
            for number, one in enumerate(self.unsynced):
                if number != left_out:
                    content = _changed(content, *one)
            found.append(content)
        return list(dict.fromkeys(found))


def _changed(content: bytes, what: str, where: int, data: bytes) -> bytes:
    if what == "truncate":
        return content[:where].ljust(where, b"\0")
    return content[:where].ljust(where, b"\0") + data + content[where + len(data) :]


@dataclass(frozen=True, eq=False)
class Change:
    """One atomic change of entries: (folder, name, what is there afterwards or None)."""

    links: tuple[tuple[Node, str, Node | None], ...]

    def made_durable_by(self, folder: Node) -> bool:
        """A rename is durable with the folder that it goes to."""
        return self.links[-1][0] is folder


class RecordingCalls(TestCalls):
    """Writes down every change of the disk below a folder, in order."""

    __test__ = False

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.log: list[Op] = []
        self._paths: dict[int, str] = {}

    def promise(self, what: object) -> None:
        """Write down what from now on must not be lost."""
        self.log.append(Op("promise", "", what))

    def create(self, path):
        fd = super().create(path)
        self._paths[fd] = self._note("create", path)
        return fd

    def open_append(self, path):
        new = not path.exists()
        fd = super().open_append(path)
        self._paths[fd] = self._note("create", path) if new else self._name(path)
        return fd

    def write(self, fd, data):
        written = super().write(fd, data)
        self.log.append(Op("write", self._paths[fd], bytes(data[:written])))
        return written

    def truncate(self, fd, size):
        super().truncate(fd, size)
        self.log.append(Op("truncate", self._paths[fd], size))

    def fsync(self, fd):
        super().fsync(fd)
        self.log.append(Op("fsync", self._paths[fd], None, _site()))

    def fdatasync(self, fd):
        super().fdatasync(fd)
        self.log.append(Op("fdatasync", self._paths[fd], None, _site()))

    def replace(self, source, target):
        super().replace(source, target)
        self.log.append(Op("replace", self._name(source), self._name(target), _site()))

    def unlink(self, path):
        super().unlink(path)
        self._note("unlink", path)

    def mkdir(self, path):
        super().mkdir(path)
        self._note("mkdir", path)

    def rmdir(self, path):
        super().rmdir(path)
        self._note("unlink", path)

    def fsync_dir(self, path):
        super().fsync_dir(path)
        self.log.append(Op("fsync_dir", self._name(path), None, _site()))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _note(self, call: str, path: Path) -> str:
        name = self._name(path)
        self.log.append(Op(call, name))
        return name


def _site() -> str:
    """The function of the product, outside the module of file changes, that asked for this."""
    frame = sys._getframe(2)
    inner = ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "edgepack_runtime.storage.fsio":
            inner = frame.f_code.co_name
        elif module.startswith("edgepack_runtime."):
            return f"{frame.f_code.co_qualname} ({inner})"
        frame = frame.f_back
    return "somebody else"


class Disk:
    """Replays a log and says what a power cut at this moment may leave.

    Args:
        tree: What is durable at the beginning.
    """

    def __init__(self, tree: Tree) -> None:
        self.root = Node(is_dir=True)
        for path, data in sorted(tree.items()):
            parent, _, name = path.rpartition("/")
            node = Node(is_dir=data is None, data=data or b"", durable=data or b"")
            folder = self._at(parent or ".")
            folder.entries[name] = folder.kept[name] = node
        self.pending: list[Change] = []
        self.dirty: dict[int, Node] = {}

    def apply(self, op: Op) -> None:
        """Do one call of the log."""
        match op.call:
            case "create" | "mkdir":
                self._change((op.path, Node(is_dir=op.call == "mkdir")))
            case "open_cut":
                self._open_cut(op.path)
            case "write":
                self._write(op.path, len(self._at(op.path).data), op.more)
            case "truncate":
                self._do(op.path, "truncate", op.more, b"")
            case "fsync" | "fdatasync":
                node = self._at(op.path)
                node.sync()
                self.dirty.pop(id(node), None)
            case "replace":
                self._change((op.path, None), (op.more, self._at(op.path)))
            case "unlink":
                self._change((op.path, None))
            case "fsync_dir":
                self._sync_dir(self._at(op.path))
            case "promise":
                pass
            case _:
                raise AssertionError(f"the model does not know {op.call}")

    def cuts(self, rng: random.Random, *, most: int | None = None) -> Iterator[Tree]:
        """Every tree that a power cut may leave, or some of very many.

        Args:
            rng: Chooses when there are too many.
            most: How many are too many; else what more than :data:`EXHAUSTIVE` operations give.
        """
        dirty = list(self.dirty.values())
        options = [[False, True]] * len(self.pending) + [node.may_hold() for node in dirty]
        every = len(options) <= EXHAUSTIVE if most is None else math.prod(map(len, options)) <= most
        for choice in itertools.product(*options) if every else _some(options, rng, most):
            made, held = choice[: len(self.pending)], choice[len(self.pending) :]
            yield self._cut(made, {id(node): one for node, one in zip(dirty, held, strict=True)})

    def _cut(self, made: tuple[bool, ...], held: dict[int, bytes]) -> Tree:
        folders = {id(one): one for change in self.pending for one, _, _ in change.links}
        for folder in folders.values():
            folder.entries, folder.saved = dict(folder.kept), folder.entries
        for change, there in zip(self.pending, made, strict=True):
            if there:
                _link(change, durable=False)
        tree = dict(_walk(self.root, "", held))
        for folder in folders.values():
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

    def _open_cut(self, path: str) -> None:
        """What O_CREAT | O_TRUNC does."""
        parent, _, name = path.rpartition("/")
        if name in self._at(parent or ".").entries:
            self._do(path, "truncate", 0, b"")
        else:
            self._change((path, Node(is_dir=False)))

    def _write(self, path: str, where: int, data: object) -> None:
        self._do(path, "write", where, data)

    def _do(self, path: str, what: str, where: object, data: object) -> None:
        node = self._at(path)
        node.do(what, where, data)  # type: ignore[arg-type]
        self.dirty[id(node)] = node

    def _sync_dir(self, folder: Node) -> None:
        for change in [one for one in self.pending if one.made_durable_by(folder)]:
            _link(change, durable=True)
            self._supersede(change)

    def _supersede(self, change: Change) -> None:
        """What is durable now also settles what was done to the same entries before."""
        settled = [(where, name) for where, name, _ in change.links]
        number = self.pending.index(change)
        self.pending = [
            one
            for position, one in enumerate(self.pending)
            if one is not change
            and (
                position > number
                or len(one.links) > 1
                or not any(
                    one.links[0][0] is where and one.links[0][1] == name for where, name in settled
                )
            )
        ]


def snapshot(root: Path) -> Tree:
    """The tree below a folder; None stands for a folder."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def materialise(tree: Tree, root: Path) -> None:
    """Write a tree to a folder."""
    root.mkdir(parents=True)
    for path, data in tree.items():
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)


def key(tree: Tree, *more: object) -> bytes:
    """A short name of a tree."""
    found = hashlib.blake2b(repr(more).encode(), digest_size=16)
    for path, data in sorted(tree.items()):
        found.update(f"{path} {-1 if data is None else len(data)}\0".encode())
        found.update(data or b"")
    return found.digest()


def without(log: list[Op], kind: str) -> list[Op]:
    """The log of a product that lacks one class of calls; what was renamed is written in place."""
    left = [op for op in log if op.call == "replace" or op.kind != kind]
    while True:
        number = next((n for n, op in enumerate(left) if op.kind == kind), None)
        if number is None:
            return left
        left = _in_place(left, number)


def _in_place(log: list[Op], number: int) -> list[Op]:
    """The log without the rename at ``number``: the file or folder is made where it ends up."""
    source, target = log[number].path, str(log[number].more)
    before, after = log[:number], log[number + 1 :]
    begins = next(
        (n for n in reversed(range(number)) if _makes(before[n], source)),
        None,
    )
    if begins is None:
        # it was there before: what is done to it under its new name is done under the old one
        return before + [_renamed(op, target, source) for op in after]
    middle = [_renamed(op, source, target) for op in before[begins:]]
    if middle[0].call == "create":
        # whoever writes in place opens what is there
        middle[0] = Op("open_cut", target)
    return before[:begins] + middle + after


def _makes(op: Op, path: str) -> bool:
    return op.call in ("create", "mkdir") and op.path == path


def _renamed(op: Op, old: str, new: str) -> Op:
    def other(path: object) -> object:
        inside = isinstance(path, str) and (path == old or path.startswith(f"{old}/"))
        return new + str(path)[len(old) :] if inside else path

    more = other(op.more) if op.call == "replace" else op.more
    return op._replace(path=str(other(op.path)), more=more)


def _some(options: list[list], rng: random.Random, most: int | None) -> Iterator[tuple]:
    """Nothing of what is pending, all of it, and combinations by chance."""
    yield tuple(one[0] for one in options)
    yield tuple(one[min(1, len(one) - 1)] for one in options)
    for _ in range((most or SAMPLES) - 2):
        yield tuple(rng.choice(one) for one in options)


def _link(change: Change, *, durable: bool) -> None:
    for folder, name, node in change.links:
        entries = folder.kept if durable else folder.entries
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _walk(node: Node, path: str, held: dict[int, bytes]) -> Iterator[tuple[str, bytes | None]]:
    for name, child in sorted(node.entries.items()):
        below = f"{path}/{name}" if path else name
        if child.is_dir:
            yield below, None
            yield from _walk(child, below, held)
        else:
            yield below, held.get(id(child), child.durable)
