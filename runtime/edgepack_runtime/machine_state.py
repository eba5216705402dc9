"""What the machine says of itself right now: heat, memory, disk. What it does not know is None."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_READ_BYTES = 64 * 1024
_THERMAL = Path("/sys/class/thermal/thermal_zone0/temp")
_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_THROTTLED_NOW = 0xF
"""Raspberry Pi firmware: the low four bits are under-voltage, capped, throttled, soft limit."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """One look at the machine; bytes and degrees Celsius."""

    cpu_celsius: float | None
    throttled: bool | None
    memory_available_bytes: int | None
    memory_rss_bytes: int | None
    disk_free_bytes: int | None


def look(folder: Path) -> MachineState:
    """Look at the machine, and at the disk that holds ``folder``."""
    return MachineState(
        cpu_celsius=_celsius(_read(_THERMAL)),
        throttled=_throttled(_read(_THROTTLED)),
        memory_available_bytes=_kib_field(_read(Path("/proc/meminfo")), "MemAvailable"),
        memory_rss_bytes=_kib_field(_read(Path("/proc/self/status")), "VmRSS"),
        disk_free_bytes=_disk_free(folder),
    )


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none."""
    return _read(Path("/proc/sys/kernel/random/boot_id")).strip()


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.read(_READ_BYTES)
    except (OSError, UnicodeDecodeError):
        return ""


def _celsius(text: str) -> float | None:
    try:
        return int(text.strip()) / 1000
    except ValueError:
        return None


def _throttled(text: str) -> bool | None:
    try:
        return bool(int(text.strip(), 16) & _THROTTLED_NOW)
    except ValueError:
        return None


def _kib_field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _disk_free(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
