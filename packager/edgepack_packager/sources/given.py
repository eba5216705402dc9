"""Graphs and answers that another program gives: read as data, and joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import uses_external_data

from edgepack_packager.data.rows import Feeds
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.graphs.clean import all_nodes


def read_graph(raw: bytes, what: str) -> onnx.ModelProto:
    """The graph in ``raw``.

    Raises:
        ModelSourceError: It is none, or names files as its weights.
    """
    try:
        graph = onnx.load_model_from_string(raw)
    except DecodeError as error:
        raise ModelSourceError(f"{what} gave no ONNX graph: {error}") from error
    check_embedded(graph, what)
    return graph


def check_embedded(graph: onnx.ModelProto, what: str) -> None:
    """Refuse a graph in memory whose weights are said to be in files: which, and whose?

    Raises:
        ModelSourceError: Some are.
    """
    outside = sorted(tensor.name for tensor in _tensors(graph.graph) if uses_external_data(tensor))
    if outside:
        raise ModelSourceError(
            f"{what} gave a graph that keeps {outside[0]!r} in a file; load the weights into it "
            "with onnx.load",
            code="unsafe-weights",
        )


def join_rows(parts: Sequence[Feeds]) -> Feeds:
    """Outputs of consecutive rows as one, by name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in all_nodes(graph):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from inner.initializer
