"""The child of :mod:`edgepack_runtime.inference.probe`, from its first step to its last.

It confines itself, looks over the graph, and only then imports onnxruntime.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from edgepack_contract.description import DESCRIPTION_PATH, Description, parse_description
from edgepack_contract.errors import BundleError
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_runtime.inference.confinement import (
    OUTPUT_BYTES,
    confine,
    keep_output_apart,
    limit_cpu,
)
from edgepack_runtime.inference.errors import UnfitModelError
from edgepack_runtime.inference.prescan import prescan
from edgepack_runtime.inference.probe import Order


def run_child(order: Order) -> None:
    """Judge a variant, say the verdict on standard output, and end this process."""
    output = keep_output_apart()
    confine(seconds=order.seconds, parent=order.parent)
    verdict = _judge(order)
    os.write(output, msgspec.json.encode(verdict)[:OUTPUT_BYTES] + b"\n")
    # without destructors: a model that breaks onnxruntime's shutdown has been judged already
    os._exit(1 if verdict["code"] else 0)


def _judge(order: Order) -> dict[str, Any]:
    folder = Path(order.folder)
    try:
        # as .variant has it, which imports onnxruntime
        raw = read_small(folder / DESCRIPTION_PATH, LIMITS.description_bytes)
        description = parse_description(raw)
        if order.cpu_seconds:
            limit_cpu(order.cpu_seconds * _threads(description, order))
        prescan(folder, description)
    except UnfitModelError as error:
        return {"code": error.code, "words": str(error)[:500]}
    except (BundleError, OSError) as error:
        return {"code": "load-failed", "words": str(error)[:500]}
    # onnxruntime comes last: it must not be there for a graph that was refused
    from edgepack_runtime.inference.trial import run_trial  # noqa: PLC0415

    return run_trial(
        folder,
        description,
        memory_bytes=order.memory_bytes,
        threads=order.threads,
        rounds=order.rounds,
    )


def _threads(description: Description, order: Order) -> int:
    """How many threads of a session compute side by side."""
    options = description.session
    given = options.intra_op_threads or order.threads, options.inter_op_threads or order.threads
    return max(given)


if __name__ == "__main__":
    # FOLDER [MEMORY_BYTES [THREADS [SECONDS [ROUNDS [PARENT [CPU_SECONDS]]]]]]
    run_child(Order(sys.argv[1], *map(int, sys.argv[2:])))
