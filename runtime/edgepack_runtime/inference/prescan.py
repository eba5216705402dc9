"""Look over a graph before onnxruntime sees it, and hold it against its description.

It runs in the probe's child, under its limits: reading a large graph takes the interpreter some
seconds, which the process that serves does not have.
"""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import closing
from pathlib import Path

from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH, Description
from edgepack_contract.limits import GIB
from edgepack_runtime.inference.errors import UnfitModelError
from edgepack_runtime.inference.outline import Outline, read_outline
from edgepack_runtime.inference.unfit import malformed, outside, undescribed

MAX_BYTES = 2 * GIB - 1
"""What protobuf can hold; larger weights lie beside the graph."""

DOMAINS = frozenset({"ai.onnx", "ai.onnx.ml", "com.microsoft"})
FORBIDDEN = frozenset({"com.microsoft:EPContext"})
"""It names files for another execution provider to load."""


def prescan(folder: Path, description: Description) -> Outline:
    """Check the graph of an unpacked variant without loading it.

    Raises:
        UnfitModelError: It is malformed, not what the description says, beyond a limit, or names
            bytes that are not its own.
        OSError: It cannot be read.
    """
    with _open_regular(folder / MODEL_PATH) as data:
        outline = read_outline(data)
    _check_described(outline, description)
    _check_external(outline, folder / MODEL_DATA_PATH)
    return outline


def _check_described(outline: Outline, description: Description) -> None:
    foreign = [one for one in outline.operators if one.partition(":")[0] not in DOMAINS]
    for name in sorted(FORBIDDEN & outline.operators) or sorted(foreign):
        raise UnfitModelError(
            f"{MODEL_PATH}: no device runs the operator {name[:160]}", code="forbidden-operator"
        )
    others = sorted(outline.operators - set(description.operators))
    if others:
        raise undescribed(f"it has the operator {others[0][:160]}")
    if outline.ir_version != description.ir_version:
        raise undescribed(f"its format is version {outline.ir_version}")
    if outline.opsets != description.opsets:
        raise undescribed(f"its opsets are {dict(list(outline.opsets.items())[:8])}")


def _check_external(outline: Outline, path: Path) -> None:
    if not outline.external:
        return
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise outside(f"{path.name} is no file")
    furthest = max(offset + length for offset, length in outline.external)
    # tensors that share bytes would take more memory than the file has
    total = sum(length for _, length in outline.external)
    if max(furthest, total) > found.st_size:
        raise outside(
            f"its tensors take {max(furthest, total)} bytes of {path.name}, "
            f"which has {found.st_size}"
        )


def _open_regular(path: Path) -> closing[mmap.mmap]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= MAX_BYTES:
            raise malformed(f"it is no file of 1 to {MAX_BYTES} bytes")
        return closing(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(fd)
