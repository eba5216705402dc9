"""The fields of the messages of onnx.proto that a graph is walked by.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, IR version 13. A test holds them against the
``onnx`` package.
"""

from __future__ import annotations

from edgepack_runtime.inference.wire import FIXED32, FIXED64, LENGTH, VARINT, scalars

BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64,
    14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Bits of an element by TensorProto.DataType."""
STRING = 8

_ONE, _MANY = False, True
_INT, _REAL, _LONG_REAL, _BYTES = {VARINT}, {FIXED32}, {FIXED64}, {LENGTH}
Shape = dict[int, tuple[bool, set[int]]]
"""Of each field of a message: whether it repeats, and the wire types it may have."""

MODEL: Shape = {
    1: (_ONE, _INT), 2: (_ONE, _BYTES), 3: (_ONE, _BYTES), 4: (_ONE, _BYTES), 5: (_ONE, _INT),
    6: (_ONE, _BYTES), 7: (_ONE, _BYTES), 8: (_MANY, _BYTES), 14: (_MANY, _BYTES),
    20: (_MANY, _BYTES), 25: (_MANY, _BYTES), 26: (_MANY, _BYTES),
}  # fmt: skip
GRAPH: Shape = {
    1: (_MANY, _BYTES), 2: (_ONE, _BYTES), 5: (_MANY, _BYTES), 10: (_ONE, _BYTES),
    11: (_MANY, _BYTES), 12: (_MANY, _BYTES), 13: (_MANY, _BYTES), 14: (_MANY, _BYTES),
    15: (_MANY, _BYTES), 16: (_MANY, _BYTES),
}  # fmt: skip
NODE: Shape = {
    1: (_MANY, _BYTES), 2: (_MANY, _BYTES), 3: (_ONE, _BYTES), 4: (_ONE, _BYTES),
    5: (_MANY, _BYTES), 6: (_ONE, _BYTES), 7: (_ONE, _BYTES), 8: (_ONE, _BYTES),
    9: (_MANY, _BYTES), 10: (_MANY, _BYTES),
}  # fmt: skip
ATTRIBUTE: Shape = {
    1: (_ONE, _BYTES), 2: (_ONE, _REAL), 3: (_ONE, _INT), 4: (_ONE, _BYTES), 5: (_ONE, _BYTES),
    6: (_ONE, _BYTES), 7: (_MANY, _REAL | _BYTES), 8: (_MANY, _INT | _BYTES), 9: (_MANY, _BYTES),
    10: (_MANY, _BYTES), 11: (_MANY, _BYTES), 13: (_ONE, _BYTES), 14: (_ONE, _BYTES),
    15: (_MANY, _BYTES), 20: (_ONE, _INT), 21: (_ONE, _BYTES), 22: (_ONE, _BYTES),
    23: (_MANY, _BYTES),
}  # fmt: skip
TENSOR: Shape = {
    1: (_MANY, _INT | _BYTES), 2: (_ONE, _INT), 3: (_ONE, _BYTES), 4: (_MANY, _REAL | _BYTES),
    5: (_MANY, _INT | _BYTES), 6: (_MANY, _BYTES), 7: (_MANY, _INT | _BYTES), 8: (_ONE, _BYTES),
    9: (_ONE, _BYTES), 10: (_MANY, _LONG_REAL | _BYTES), 11: (_MANY, _INT | _BYTES),
    12: (_ONE, _BYTES), 13: (_MANY, _BYTES), 14: (_ONE, _INT), 16: (_MANY, _BYTES),
}  # fmt: skip
SPARSE: Shape = {1: (_ONE, _BYTES), 2: (_ONE, _BYTES), 3: (_MANY, _INT | _BYTES)}
PAIR: Shape = {1: (_ONE, _BYTES), 2: (_ONE, _BYTES)}
OPSET: Shape = {1: (_ONE, _BYTES), 2: (_ONE, _INT)}

ATTRIBUTE_SCALARS = scalars(reals=7, numbers=8, texts=9)
"""floats, ints and strings of an attribute, which say nothing of what the graph is made of."""
