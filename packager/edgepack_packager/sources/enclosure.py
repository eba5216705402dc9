"""The first steps of a child that loads somebody's code: it shuts itself in, then begins.

Run as a file, before anything else is imported: a process with threads cannot enter a namespace.
It stays behind as the keeper of the process that does the work, and ends it when the lifeline from
the build is cut. What is shut: the network, every file but those that are named (read-only), other
processes, new processes, more privileges. See namespaces(7), pivot_root(2), seccomp(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

NEW_NS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 8, 4096, 16384, 1 << 18,
)  # fmt: skip
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
MOUNT_SETATTR, ATTR_RDONLY, ATTR_NOSUID = 442, 1, 2
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
CAPABILITY_V3 = 0x20080522

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE = 0x00050000 | 1
"""Fails with EPERM."""
ABSENT = 0x00050000 | 38
"""Fails with ENOSYS: the C library falls back to clone, whose flags a filter can read."""
CLONE_THREAD = 0x00010000


class Architecture(NamedTuple):
    """Numbers of system calls, and of the architecture itself as the audit knows it.

    ``refused`` are fork, vfork, ptrace, add_key, request_key, keyctl, unshare, setns,
    process_vm_readv, process_vm_writev, bpf and io_uring_setup, as far as there are any.
    """

    audit: int
    clone: int
    pivot_root: int
    refused: tuple[int, ...]


ARCHITECTURES = {
    "x86_64": Architecture(
        0xC000003E, 56, 155, (57, 58, 101, 248, 249, 250, 272, 308, 310, 311, 321, 425)
    ),
    "aarch64": Architecture(0xC00000B7, 220, 41, (117, 217, 218, 219, 97, 268, 270, 271, 280, 425)),
}
CLONE3 = 435

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
PROCESSORS = "/sys/devices/system/cpu"
SCRATCH = "/scratch"
"""The only place to write to: in memory, and not under a name that may hold a model."""


class EnclosureError(Exception):
    """The kernel, or who runs it, does not allow it."""


def main(arguments: Sequence[str]) -> int:
    """Enclose, fork and keep. ``arguments``: a JSON object and the lifeline's descriptor."""
    plan, lifeline = json.loads(arguments[0]), int(arguments[1])
    try:
        if plan["enclosed"]:
            leave()
    except (EnclosureError, OSError) as error:
        return say({"why": str(error)})
    # if memory runs out, the kernel shall end this and not the build
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    child = os.fork()
    if child:
        return keep(child, lifeline)
    os.close(lifeline)
    try:
        if plan["enclosed"]:
            enclose(plan["visible"], Path(plan["root"]), plan["memory_bytes"])
        settle(plan)
    except (EnclosureError, OSError) as error:
        return say({"why": str(error)})
    say({"why": ""})
    sys.path.append(plan["modules"])
    # only here, inside: importing it loads numpy and others
    from edgepack_packager.sources.child import serve_standard_streams  # noqa: PLC0415

    return serve_standard_streams()


def say(words: dict[str, str]) -> int:
    """Write one frame to standard output."""
    frame = json.dumps(words).encode()
    os.write(1, struct.pack(">Q", len(frame)) + frame)
    return 0


def keep(child: int, lifeline: int) -> int:
    """Wait for the child or for the end of the lifeline, and end as the child did."""
    # the pipes are the child's alone: they must close when it ends
    for descriptor in (0, 1):
        os.close(descriptor)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([lifeline, ended], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def leave() -> None:
    """Enter namespaces of its own; the process that is forked next is the first in them.

    Raises:
        EnclosureError: The rest of the enclosure is not known for this kind of machine.
        OSError: It is not allowed here.
    """
    if platform.machine() not in ARCHITECTURES:
        raise EnclosureError(f"no filter of system calls is known for {platform.machine()}")
    user, group = os.getuid(), os.getgid()
    apart = NEW_NS | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET
    try:
        _libc_call("unshare", NEW_USER | apart)
    except OSError:
        _libc_call("unshare", apart)  # root where user namespaces are turned off
        return
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")


def enclose(visible: Sequence[str], root: Path, memory_bytes: int) -> None:
    """Leave all files but ``visible`` behind; the processes seen are those of the new namespace.

    Raises:
        OSError: It is not allowed here.
    """
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", str(root), "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in (*SYSTEM, *visible):
        _show(path, root)
    for path in (*DEVICES, PROCESSORS):
        _show(path, root)
    for path in ("/proc", SCRATCH):
        (root / path[1:]).mkdir(exist_ok=True)
    _read_only(root)
    # read-only: its settings belong to root, and this may be root without being able to do anything
    closed = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    _mount("proc", f"{root}/proc", "proc", closed)
    _mount("tmpfs", f"{root}{SCRATCH}", "tmpfs", MS_NOSUID | MS_NODEV, f"size={memory_bytes // 2}")
    os.chdir(root)
    _call("pivot_root", ARCHITECTURES[platform.machine()].pivot_root, b".", b".")
    _libc_call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def settle(plan: dict[str, Any]) -> None:
    """The last bolts, in the process that does the work: limits, privileges, system calls."""
    size = plan["memory_bytes"]
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, size),
        (resource.RLIMIT_FSIZE, size),
    ):
        hard = resource.getrlimit(limit)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (least, least))
    if not plan["enclosed"]:
        _libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return
    os.chdir(SCRATCH)
    _libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities()
    _refuse_processes()


def _show(path: str, root: Path) -> None:
    """Make ``path`` appear below ``root``: links as links, files and folders as themselves."""
    source, place = Path(path), root / path[1:]
    if not source.exists() or place.is_symlink():
        return
    if source.is_symlink() and path in SYSTEM:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source.readlink())
        return
    _mount_at(path, root)


def _mount_at(path: str, root: Path) -> None:
    place = root / path[1:]
    if not place.exists():
        if Path(path).is_dir():
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    _mount(path, str(place), None, MS_BIND | MS_REC)


def _read_only(root: Path) -> None:
    # struct mount_attr: set, clear, propagation, user namespace
    attributes = struct.pack("=QQQQ", ATTR_RDONLY | ATTR_NOSUID, 0, 0, 0)
    path = os.fsencode(root)
    _call("mount_setattr", MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, attributes, len(attributes))


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", CAPABILITY_V3, 0)
    _libc_call("capset", header, bytes(24))


def _refuse_processes() -> None:
    """Refuse new processes, which no limit bounds for root, and ways to look into others."""
    here = ARCHITECTURES[platform.machine()]
    steps = [(0x20, 0, 0, 4), (0x15, 1, 0, here.audit), (0x06, 0, 0, KILL), (0x20, 0, 0, 0)]
    if here is ARCHITECTURES["x86_64"]:
        steps += [(0x35, 0, 1, 0x40000000), (0x06, 0, 0, REFUSE)]  # the other numbering, x32
    for number, answer in [*((each, REFUSE) for each in here.refused), (CLONE3, ABSENT)]:
        steps += [(0x15, 0, 1, number), (0x06, 0, 0, answer)]
    # a clone that is no thread is a process; the flags are the first argument
    steps += [(0x15, 0, 3, here.clone), (0x20, 0, 0, 16), (0x45, 1, 0, CLONE_THREAD)]
    steps += [(0x06, 0, 0, REFUSE), (0x06, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _libc_call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def _mount(
    source: str | None, place: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, place, kind)]
    data = None if options is None else options.encode()
    _libc_call("mount", *encoded, flags, data, what=f"mount {place}")


def _call(name: str, number: int, *arguments: object) -> None:
    _libc_call("syscall", number, *arguments, what=name)


def _libc_call(name: str, *arguments: object, what: str | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    plain = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if getattr(libc, name)(*plain) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what or name}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
