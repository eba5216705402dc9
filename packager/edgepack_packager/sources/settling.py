"""Names in graphs of tf2onnx, which follow where things lie in memory: given anew, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx

from edgepack_packager.graphs.clean import all_nodes

_COUNTER = re.compile(r"__\d+")


def settle_names(graph: onnx.GraphProto) -> None:
    """Make the same graph have the same names and order of constants, whatever run made it.

    Which of several equal constants stays, and at what a counter stands, differs from run to run.
    Names of inputs and outputs stay.
    """
    kept = {item.name for item in (*graph.input, *graph.output)}
    constants = _number_constants(graph, kept)
    names = {**_number_counters(graph, kept | constants.keys()), **constants}
    for node in all_nodes(graph):
        node.name = names.get(node.name, node.name)
        for texts in (node.input, node.output):
            for place, text in enumerate(texts):
                texts[place] = names.get(text, text)
    del graph.value_info[:]  # the runtime infers it again


def _number_constants(graph: onnx.GraphProto, kept: set[str]) -> dict[str, str]:
    """Constants by their first use; new names by old ones."""
    known = {tensor.name: tensor for tensor in graph.initializer}
    used = [name for node in all_nodes(graph) for name in node.input if name in known]
    used += [item.name for item in graph.output if item.name in known]
    ordered = list(dict.fromkeys(used))
    names = {old: f"constant_{n}" for n, old in enumerate(ordered) if old not in kept}
    for old, new in names.items():
        known[old].name = new
    del graph.initializer[:]
    graph.initializer.extend(known[old] for old in ordered)
    return names


def _number_counters(graph: onnx.GraphProto, settled: set[str]) -> dict[str, str]:
    """Counters in names, by their first use; new names by old ones."""
    numbers: dict[str, str] = {}

    def again(match: re.Match[str]) -> str:
        return numbers.setdefault(match[0], f"__{len(numbers)}")

    found = dict.fromkeys(name for name in _names(graph) if name not in settled)
    return {name: _COUNTER.sub(again, name) for name in found}


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for node in all_nodes(graph):
        yield from (node.name, *node.input, *node.output)
