"""Try a foreign graph in a child process, when it may never end or take all memory.

Of 39 hand-made hostile graphs and 10,000 with bytes changed at random none crashed onnxruntime
1.31; what hung it or took all memory did so by loops, and by operators that make large tensors out
of a few numbers. Graphs with these are loaded and run once on made-up rows in a child that has a
deadline and a bound on memory. ``python -m edgepack_packager.graphs.first_run FOLDER BYTES`` is
the child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx

from edgepack_contract.description import MODEL_PATH
from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.clean import all_nodes, loading_passes
from edgepack_packager.graphs.first_child import NO_MEMORY
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import save_model

SECONDS = 60.0

UNBOUNDED = frozenset({
    "ConstantOfShape", "Expand", "EyeLike", "Loop", "OneHot", "Pad", "RandomNormal",
    "RandomUniform", "Range", "Resize", "Scan", "SequenceMap", "Tile", "Upsample",
})  # fmt: skip
"""Operators whose work is not bounded by the size of what they are given."""

_CHILD = "edgepack_packager.graphs.first_child"
_KEPT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR")


def check_first_run(model: onnx.ModelProto, folder: Path, *, seconds: float = SECONDS) -> None:
    """Load ``model`` and run it once in a child, when it has operators without a bound.

    Rows are made up, so that an error of the model's own is no verdict: the build meets it again,
    or does not, with the real ones.

    Args:
        model: The graph as it came.
        folder: A place for files in between.
        seconds: The child is killed after so many.

    Raises:
        ConversionError: It does not end, takes all memory, or crashes the runtime.
    """
    risky = sorted({node.op_type for node in all_nodes(model.graph)} & UNBOUNDED)
    if not risky:
        return
    place = folder / "first-run"
    save_model(run_passes(model, loading_passes())[0], place)
    kinds = ", ".join(risky)
    try:
        code = _run_child(place, seconds)
    except subprocess.TimeoutExpired as error:
        raise ConversionError(
            f"a first run of the model did not end within {seconds:g} s; look at its {kinds}",
            code="model-hangs",
        ) from error
    if code in {NO_MEMORY, -signal.SIGKILL}:
        raise ConversionError(
            f"a first run of the model takes more memory than there is; look at its {kinds}",
            code="model-memory",
        )
    if code < 0:
        raise ConversionError(
            f"the runtime dies of signal {-code} with this model; look at its {kinds}",
            code="model-crashes",
        )


def _run_child(folder: Path, seconds: float) -> int:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    command = [sys.executable, "-P", "-m", _CHILD, str(folder / MODEL_PATH), str(memory)]
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**kept, "ORT_DISABLE_TELEMETRY": "1", "MALLOC_ARENA_MAX": "2"},
        timeout=seconds,
        check=False,
    )
    return done.returncode
