"""What the machine itself is checked for: disk, memory, versions, the service manager."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgepack_contract import __version__
from edgepack_contract.limits import MIB
from edgepack_runtime import machine_state
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.local.findings import Finding, fail, ok, warn
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.storage.store import RESERVE_BYTES

LEAST_MEMORY_BYTES = 128 * MIB
SLOW_FSYNC_SECONDS = 1.0
LEAST_ONNXRUNTIME = (1, 31)
UNITS = (
    Path("/etc/systemd/system/edgepack.service"),
    Path("/usr/lib/systemd/system/edgepack.service"),
    Path("/lib/systemd/system/edgepack.service"),
)
_PROC_BYTES = 1024 * 1024
_RISKY = {
    "vfat": "it has no journal, so a power cut can lose files that were written",
    "exfat": "it has no journal, so a power cut can lose files that were written",
    "overlay": "it belongs to a container and goes with it",
    "tmpfs": "it is in memory and goes with the next boot",
    "ramfs": "it is in memory and goes with the next boot",
    "nfs": "it is on another machine, and locks and renames are only as good as that",
    "nfs4": "it is on another machine, and locks and renames are only as good as that",
    "cifs": "it is on another machine, and locks and renames are only as good as that",
    "ntfs": "its driver may not keep what was written through a power cut",
    "fuseblk": "its driver may not keep what was written through a power cut",
}


def check_disk(state_dir: Path) -> list[Finding]:
    """Room, kind of file system, and whether what is written stays written."""
    room = _room(state_dir)
    return [room, _filesystem(state_dir), _fsync(state_dir)] if state_dir.is_dir() else [room]


def check_memory() -> list[Finding]:
    """Room for a model."""
    free = machine_state.look(Path("/")).memory_available_bytes
    if free is None:
        return [warn("memory", "the kernel does not say how much is free", "mount /proc")]
    words = f"{free // MIB} MiB are free"
    if free < LEAST_MEMORY_BYTES:
        remedy = f"end other programs; a daemon with a model wants {LEAST_MEMORY_BYTES // MIB} MiB"
        return [warn("memory", words, remedy)]
    return [ok("memory", words)]


def check_versions() -> list[Finding]:
    """Python, kernel, onnxruntime."""
    found = [
        ok("versions", f"edgepack {__version__}, Python {platform.python_version()}, "
           f"{platform.system()} {platform.release()} {platform.machine()}")
    ]  # fmt: skip
    try:
        version = importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install 'edgepack[runtime]'"
        return [*found, fail("onnxruntime", "it is not installed", remedy)]
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if parts < LEAST_ONNXRUNTIME:
        least = ".".join(map(str, LEAST_ONNXRUNTIME))
        words = f"{version} holds up every request while it loads a model"
        return [*found, fail("onnxruntime", words, f"pip install 'onnxruntime>={least}'")]
    return [*found, ok("onnxruntime", version)]


def check_usage_data(environ: Mapping[str, str]) -> list[Finding]:
    """Whether onnxruntime is kept from sending usage data to its vendor."""
    if environ.get("ORT_DISABLE_TELEMETRY", "1") not in ("", "0"):
        return [ok("usage-data", "every process of edgepack switches off that of onnxruntime")]
    words = "ORT_DISABLE_TELEMETRY is set to nothing or 0, so onnxruntime may send usage data"
    return [warn("usage-data", words, "unset it, or set it to 1")]


def check_service(units: Sequence[Path] = UNITS, systemd: Path | None = None) -> list[Finding]:
    """Whether something starts the daemon at boot.

    Args:
        units: Where its unit may be.
        systemd: A folder that is there when systemd runs this machine.
    """
    if not (systemd or Path("/run/systemd/system")).is_dir():
        return [ok("service", "no systemd here: whatever runs the container starts the daemon")]
    unit = next((path for path in units if path.exists()), None)
    if unit is None:
        remedy = f"put deploy/systemd/edgepack.service at {UNITS[0]}; systemctl enable edgepack"
        return [warn("service", "no unit starts the daemon at boot", remedy)]
    return [ok("service", str(unit))]


def filesystem_of(folder: Path, mounts: str) -> tuple[str, str]:
    """The kind and the options of the file system that has a folder.

    Args:
        folder: Absolute, with no links.
        mounts: ``/proc/self/mountinfo``, see proc(5).
    """
    best, found = "", ("unknown", "")
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 6 or not kinds:
            continue
        place = fields[4].replace("\\040", " ")
        inside = folder == Path(place) or Path(place) in folder.parents
        if inside and len(place) >= len(best):
            best, found = place, (kinds[0], fields[5])
    return found


def _room(state_dir: Path) -> Finding:
    try:
        found = os.statvfs(state_dir)
    except OSError as error:
        remedy = "make it, for the user that runs the daemon"
        return fail("disk", f"{state_dir}: {error.strerror}", remedy)
    free = found.f_bavail * found.f_frsize
    words = f"{free // MIB} MiB are free for {state_dir}"
    if free < RESERVE_BYTES:
        remedy = f"free some space: installs leave {RESERVE_BYTES // MIB} MiB and need more"
        return fail("disk", words, remedy)
    if found.f_files and not found.f_favail:
        return fail("disk", f"no file can be made on the disk of {state_dir}", "remove small files")
    return ok("disk", words)


def _filesystem(state_dir: Path) -> Finding:
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as stream:
        mounts = stream.read(_PROC_BYTES)
    kind, options = filesystem_of(state_dir.resolve(), mounts)
    if "ro" in options.split(","):
        remedy = "put state_dir on a disk that can be written"
        return fail("filesystem", f"{kind}, and it is mounted read-only", remedy)
    if kind in _RISKY:
        remedy = "put state_dir on ext4, xfs, btrfs or f2fs of this machine"
        return warn("filesystem", f"{kind}: {_RISKY[kind]}", remedy)
    return ok("filesystem", kind)


def _fsync(state_dir: Path) -> Finding:
    # named like a temporary of fsio, so that the daemon removes what a crash leaves of it
    path = state_dir / f"doctor.tmp-{os.getpid()}"
    begun = time.monotonic()
    try:
        DurableFS().atomic_write(path, b"edgepack doctor\n")
    except DeviceError as error:
        if isinstance(error.__cause__, PermissionError):
            remedy = "run this as the daemon's user, or with sudo"
            return warn("fsync", f"{state_dir} cannot be written by this user", remedy)
        return fail("fsync", str(error), "free some space, or check and replace the disk")
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    seconds = time.monotonic() - begun
    words = f"a file was durable after {1000 * seconds:.0f} ms"
    if seconds > SLOW_FSYNC_SECONDS:
        return warn("fsync", words, "the disk is slow or worn out; use a better one")
    return ok("fsync", words)
