"""What a machine can run: architecture, CPU features by the kernel's own names, cores, memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated

import msgspec

from edgepack_contract.errors import ConfigError

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

# fmt: off
X86_FEATURES = frozenset({
    "sse4_2", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "avx_vnni", "avx512f", "avx512bw",
    "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_int8", "amx_bf16",
})
ARM_FEATURES = frozenset({
    "asimd", "asimdhp", "asimddp", "asimdfhm", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16",
})

# Source: x86-64 psABI, "Micro-architecture levels", in the flag names of /proc/cpuinfo, where sse3
# is pni, lzcnt is abm and osxsave shows as xsave.
_LEVEL_FLAGS = {
    "x86-64-v2": frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    "x86-64-v3": frozenset({
        "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave",
    }),
    "x86-64-v4": frozenset({"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}),
}
# fmt: on

FEATURES = X86_FEATURES | ARM_FEATURES | frozenset(_LEVEL_FLAGS)
"""Every feature that a variant may ask for."""

_MAX_PROC_BYTES = 4 * 1024 * 1024


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine, as it reports itself.

    ``variant`` is OCI's, ``v8`` for every arm64; the levels of amd64 are features here.
    ``features`` are sorted; they are what every core has. ``memory_bytes`` is what the process may
    use at most. ``onnxruntime`` is the installed version.
    """

    os: Annotated[str, msgspec.Meta(max_length=32)]
    architecture: Annotated[str, msgspec.Meta(max_length=32)]
    variant: Annotated[str, msgspec.Meta(max_length=32)] | None
    features: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=32)]], msgspec.Meta(max_length=64)
    ]
    cores: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    memory_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    model: Annotated[str, msgspec.Meta(max_length=256)]
    onnxruntime: Annotated[str, msgspec.Meta(max_length=64)]


def detect_hardware(
    *, machine: str, cpuinfo: str, meminfo: str, memory_limit: str = "", onnxruntime: str
) -> Hardware:
    """Read a machine out of what its kernel says.

    Args:
        machine: What ``uname -m`` prints.
        cpuinfo: The text of ``/proc/cpuinfo``.
        meminfo: The text of ``/proc/meminfo``.
        memory_limit: The text of the control group's ``memory.max``; empty or ``max`` for none.
        onnxruntime: The version of onnxruntime that is installed.

    Raises:
        ConfigError: An architecture that edgepack does not know, or no processor is listed.
    """
    architecture = _ARCHITECTURES.get(machine.lower())
    if architecture is None:
        raise ConfigError(
            f"this machine is a {machine!r}; edgepack runs on {', '.join(sorted(_ARCHITECTURES))}",
            code="unsupported-machine",
        )
    processors = _processors(cpuinfo)
    if not processors:
        raise ConfigError("/proc/cpuinfo lists no processor", code="unsupported-machine")
    flags = _common_flags(processors)
    features = x86_features(flags) if architecture == "amd64" else sorted(flags & ARM_FEATURES)
    return Hardware(
        os="linux",
        architecture=architecture,
        variant="v8" if architecture == "arm64" else None,
        features=features,
        cores=len(processors),
        memory_bytes=_memory_bytes(meminfo, memory_limit),
        model=_model(cpuinfo)[:256],
        onnxruntime=onnxruntime,
    )


def this_machine(*, onnxruntime: str) -> Hardware:
    """The machine that this process runs on.

    Raises:
        ConfigError: See :func:`detect_hardware`.
    """
    found = detect_hardware(
        machine=platform.machine(),
        cpuinfo=_read("/proc/cpuinfo"),
        meminfo=_read("/proc/meminfo"),
        memory_limit=_read("/sys/fs/cgroup/memory.max"),
        onnxruntime=onnxruntime,
    )
    board = _read("/proc/device-tree/model").strip("\0\n ")
    usable = len(os.sched_getaffinity(0))
    return msgspec.structs.replace(found, cores=usable, model=board[:256] or found.model)


def x86_features(flags: frozenset[str]) -> list[str]:
    """The features of x86 flags, and the micro-architecture levels they add up to, sorted."""
    levels: list[str] = []
    for level, needed in _LEVEL_FLAGS.items():
        if not needed <= flags:
            break
        levels.append(level)
    return sorted((flags & X86_FEATURES).union(levels))


def _processors(cpuinfo: str) -> list[dict[str, str]]:
    blocks = [_fields(block) for block in cpuinfo.split("\n\n")]
    return [block for block in blocks if "processor" in block]


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _common_flags(processors: list[dict[str, str]]) -> frozenset[str]:
    # big.LITTLE boards list different features by core, and a thread may run on any of them
    each = [
        frozenset((block.get("flags") or block.get("Features") or "").lower().split())
        for block in processors
    ]
    return frozenset.intersection(*each)


def _memory_bytes(meminfo: str, memory_limit: str) -> int:
    total = _fields(meminfo).get("MemTotal", "").removesuffix("kB").strip()
    known = [int(total) * 1024] if total.isdecimal() else []
    if memory_limit.strip().isdecimal():
        known.append(int(memory_limit))
    return min(known, default=0)


def _model(cpuinfo: str) -> str:
    fields = _fields(cpuinfo)
    return fields.get("Model") or fields.get("model name") or fields.get("Hardware") or "unknown"


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            return stream.read(_MAX_PROC_BYTES).decode(errors="replace")
    except OSError:
        # not every kernel and board has every file; the parser says what is missing
        return ""
