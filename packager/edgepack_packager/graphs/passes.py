"""Small passes over a graph: each says what it needs, what it does, and what holds afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from edgepack_packager.errors import ConversionError

Check = Callable[[onnx.ModelProto], str]
"""What is wrong with a graph, in words; empty when nothing is."""


def holds(_: onnx.ModelProto) -> str:
    """The condition that every graph meets."""
    return ""


@dataclass(frozen=True, slots=True)
class GraphPass:
    """One step.

    Attributes:
        name: Goes into the bundle's provenance when the pass changed something.
        apply: Changes the graph in place, and says whether it did.
        requires: What must hold before.
        ensures: What must hold after.
    """

    name: str
    apply: Callable[[onnx.ModelProto], bool]
    requires: Check = holds
    ensures: Check = holds


def run_passes(
    model: onnx.ModelProto, passes: Sequence[GraphPass]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Run ``passes`` over a copy of ``model``.

    Returns:
        The new graph, and the names of the passes that changed something.

    Raises:
        ConversionError: A condition does not hold; the message has the history.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    applied: list[str] = []
    for step in passes:
        _check(step.requires(result), f"before pass {step.name}", applied)
        if step.apply(result):
            applied.append(step.name)
        _check(step.ensures(result), f"after pass {step.name}", applied)
    return result, tuple(applied)


def _check(problem: str, when: str, applied: list[str]) -> None:
    if problem:
        history = f" (applied before: {', '.join(applied)})" if applied else ""
        raise ConversionError(f"{when}: {problem}{history}", code="pass-failed")
