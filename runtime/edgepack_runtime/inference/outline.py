"""Walk over a serialised ONNX model and say what it is made of, without building it.

A hostile file costs time in proportion to its size and next to no memory. What is not understood is
refused. Neither numpy nor onnxruntime is imported.
"""

from __future__ import annotations

import graphlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgepack_contract.limits import KIB, MIB
from edgepack_runtime.inference.onnx_messages import (
    ATTRIBUTE,
    ATTRIBUTE_SCALARS,
    GRAPH,
    MODEL,
    NODE,
    OPSET,
    PAIR,
    SPARSE,
    TENSOR,
    Shape,
)
from edgepack_runtime.inference.stored_tensor import (
    MAX_ELEMENTS,
    StoredTensor,
    add_pair,
    check_tensor,
    count_elements,
)
from edgepack_runtime.inference.unfit import beyond_limit, malformed, undescribed
from edgepack_runtime.inference.wire import (
    Bytes,
    Field,
    WireError,
    fields,
    read_varint,
    signed,
)

MAX_NODES = 200_000
MAX_TENSORS = 200_000
MAX_ENDS = 16_384
"""Inputs or outputs of one node or graph."""
MAX_DEPTH = 16
"""Graphs inside nodes of graphs."""
MAX_GRAPHS = 20_000
MAX_OPSETS = 64
MAX_NAME_BYTES = 16 * KIB
MAX_NAMES_BYTES = 128 * MIB
"""What all names take in memory, which may be forty times what they take in the file."""


@dataclass(slots=True)
class Outline:
    """What a graph is made of, with the graphs inside its nodes.

    ``operators`` are ``domain:name``, ``opsets`` versions by domain; ONNX's own domain is spelt
    out. ``tensor_bytes`` are those that lie in the file, ``external`` what tensors take from the
    file beside it: offset and length in bytes.
    """

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)
    nodes: int = 0
    tensors: int = 0
    depth: int = 0
    tensor_bytes: int = 0
    external: list[tuple[int, int]] = field(default_factory=list)


def read_outline(data: Bytes) -> Outline:
    """Walk over a serialised ModelProto.

    Raises:
        UnfitModelError: It is malformed, beyond a limit, or names bytes that are not its own.
    """
    if data[4:8] == b"ORTM":
        raise malformed("it is in onnxruntime's own format, not in ONNX's")
    try:
        return _Walk(data).run()
    except WireError as error:
        raise malformed(f"it is no protobuf message: {error}") from error


class _Walk:
    """One walk; graphs inside graphs wait in a list, so that none is deep in the stack."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._found = Outline()
        self._waiting: list[tuple[int, int, int]] = []
        self._graphs = 0
        self._names_bytes = 0

    def run(self) -> Outline:
        for item in self._fields(MODEL, 0, len(self._data), "model"):
            self._model_field(item)
        if not self._waiting:
            raise malformed("it has no graph")
        while self._waiting:
            self._graph(*self._waiting.pop())
        return self._found

    def _fields(self, shape: Shape, start: int, end: int, what: str) -> Iterator[Field]:
        """The fields that the message is known to have; protobuf passes over others, too."""
        seen = 0
        passing = ATTRIBUTE_SCALARS if shape is ATTRIBUTE else None
        for item in fields(self._data, start, end, passing):
            known = shape.get(item.number)
            if known is None:
                continue
            repeats, wires = known
            if item.wire not in wires or (not repeats and seen >> item.number & 1):
                raise malformed(f"field {item.number} of a {what} at byte {item.start}")
            seen |= 1 << item.number
            yield item

    def _model_field(self, item: Field) -> None:
        match item.number:
            case 1:
                self._found.ir_version = signed(item.value)
            case 7:
                self._wait(item, 0)
            case 8:
                self._opset(item)
            case 20:
                raise undescribed("it holds what trains it")
            case 25:
                raise undescribed("it has functions of its own")
            case _:
                pass

    def _wait(self, graph: Field, depth: int) -> None:
        self._graphs += 1
        if self._graphs > MAX_GRAPHS:
            raise beyond_limit(f"it has more than {MAX_GRAPHS} graphs")
        self._waiting.append((graph.start, graph.end, depth))

    def _opset(self, item: Field) -> None:
        domain, version = "", 0
        for part in self._fields(OPSET, item.start, item.end, "opset"):
            if part.number == 1:
                domain = self._text(part)
            else:
                version = signed(part.value)
        self._found.opsets[domain or "ai.onnx"] = version
        if len(self._found.opsets) > MAX_OPSETS:
            raise beyond_limit(f"it has opsets of more than {MAX_OPSETS} domains")

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise beyond_limit(f"graphs lie {depth} deep in each other, {MAX_DEPTH} may")
        self._found.depth = max(self._found.depth, depth)
        ends: Counter[int] = Counter()
        nodes: list[tuple[list[str], list[str]]] = []
        for item in self._fields(GRAPH, start, end, "graph"):
            match item.number:
                case 1:
                    nodes.append(self._node(item, depth))
                case 5:
                    self._tensor(item, may_be_outside=True)
                case 15:
                    self._sparse(item)
                case 11 | 12:
                    ends[item.number] += 1
                case _:
                    pass
        if max(ends.values(), default=0) > MAX_ENDS:
            raise beyond_limit(f"a graph has more than {MAX_ENDS} inputs or outputs")
        _check_order(nodes)

    def _node(self, node: Field, depth: int) -> tuple[list[str], list[str]]:
        self._found.nodes += 1
        if self._found.nodes > MAX_NODES:
            raise beyond_limit(f"it has more than {MAX_NODES} nodes")
        inputs: list[str] = []
        outputs: list[str] = []
        domain = operator = ""
        for item in self._fields(NODE, node.start, node.end, "node"):
            match item.number:
                case 1 | 2:
                    ends = inputs if item.number == 1 else outputs
                    ends.append(self._text(item))
                    if len(ends) > MAX_ENDS:
                        raise beyond_limit(f"a node has more than {MAX_ENDS} inputs or outputs")
                case 4:
                    operator = self._text(item)
                case 5:
                    self._attribute(item, depth)
                case 7:
                    domain = self._text(item)
                case _:
                    pass
        self._found.operators.add(f"{domain or 'ai.onnx'}:{operator}")
        return inputs, outputs

    def _attribute(self, attribute: Field, depth: int) -> None:
        for item in self._fields(ATTRIBUTE, attribute.start, attribute.end, "attribute"):
            match item.number:
                case 5 | 10:
                    self._tensor(item, may_be_outside=False)
                case 6 | 11:
                    self._wait(item, depth + 1)
                case 22 | 23:
                    self._sparse(item)
                case _:
                    pass

    def _sparse(self, sparse: Field) -> None:
        dims: list[int] = []
        for item in self._fields(SPARSE, sparse.start, sparse.end, "sparse tensor"):
            if item.number == 3:
                self._dimensions(dims, item)
            else:
                self._tensor(item, may_be_outside=False)
        # it is laid out in full when it is loaded
        if count_elements(dims) > MAX_ELEMENTS >> 8:
            raise beyond_limit(f"a sparse tensor has the shape {dims[:16]}")

    def _tensor(self, field: Field, *, may_be_outside: bool) -> None:
        self._found.tensors += 1
        if self._found.tensors > MAX_TENSORS:
            raise beyond_limit(f"it has more than {MAX_TENSORS} tensors")
        tensor = StoredTensor()
        for item in self._fields(TENSOR, field.start, field.end, "tensor"):
            self._tensor_field(tensor, item)
        place = check_tensor(tensor, may_be_outside=may_be_outside)
        if place is None:
            self._found.tensor_bytes += field.end - field.start
        else:
            self._found.external.append(place)

    def _tensor_field(self, tensor: StoredTensor, item: Field) -> None:
        match item.number:
            case 1:
                self._dimensions(tensor.dims, item)
            case 2:
                tensor.kind = item.value
            case 3:
                raise malformed("a tensor lies in segments")
            case 6:
                tensor.texts += 1
            case 4 | 5 | 7 | 10 | 11:
                tensor.held += item.end - item.start
            case 9:
                tensor.raw = item.end - item.start
            case 13:
                add_pair(tensor, self._pair(item))
            case 14:
                tensor.is_outside = item.value == 1
            case _:
                pass

    def _pair(self, pair: Field) -> tuple[str, str]:
        found = {1: "", 2: ""}
        for item in self._fields(PAIR, pair.start, pair.end, "entry"):
            found[item.number] = self._text(item)
        return found[1], found[2]

    def _dimensions(self, dims: list[int], item: Field) -> None:
        at = item.start
        while at < item.end:
            value, at = read_varint(self._data, at, item.end)
            dims.append(signed(value))
            if len(dims) > MAX_ENDS:
                raise beyond_limit(f"a tensor has more than {MAX_ENDS} dimensions")

    def _text(self, item: Field) -> str:
        if item.end - item.start > MAX_NAME_BYTES:
            raise beyond_limit(f"a name has more than {MAX_NAME_BYTES} bytes")
        raw = bytes(self._data[item.start : item.end])
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise malformed(f"a name at byte {item.start} is no text") from error
        self._names_bytes += sys.getsizeof(text)
        if self._names_bytes > MAX_NAMES_BYTES:
            raise beyond_limit(f"its names take more than {MAX_NAMES_BYTES} bytes of memory")
        return text


def _check_order(nodes: list[tuple[list[str], list[str]]]) -> None:
    """Check that no node needs what is only made with its help.

    Raises:
        UnfitModelError: One does, or two make the same value.
    """
    makers: dict[str, int] = {}
    for place, (_, outputs) in enumerate(nodes):
        for name in filter(None, outputs):
            if makers.setdefault(name, place) != place:
                raise malformed(f"two nodes make the value {name[:80]!r}")
    needed = [[makers[name] for name in inputs if name in makers] for inputs, _ in nodes]
    if all(maker < place for place, makers_of in enumerate(needed) for maker in makers_of):
        return
    try:
        graphlib.TopologicalSorter(dict(enumerate(needed))).prepare()
    except graphlib.CycleError as error:
        raise malformed("its nodes need each other in a circle") from error
