"""ONNX models as bytes that no library would write."""

from __future__ import annotations

GRAPH, NODE = 7, 1
"""Where a model has its graph, and a graph its nodes."""


def part(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def in_node(content: bytes) -> bytes:
    """A model of one node."""
    return part(GRAPH, part(NODE, content))


def in_tensor(content: bytes) -> bytes:
    """A model of one initializer."""
    return part(GRAPH, part(5, content))


def deep(levels: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    graph = b""
    for _ in range(levels):
        graph = part(NODE, part(4, b"If") + part(5, part(6, graph)))
    return part(GRAPH, graph)


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
