"""The walk over a graph: it sees what the ``onnx`` package sees, and no bytes upset it."""

from __future__ import annotations

import functools
from pathlib import Path

import hostile_graphs as hostile
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import onnx_ml_pb2

from edgepack_packager.graphs.clean import operators, opsets
from edgepack_packager.graphs.tensors import all_tensors
from edgepack_runtime.inference import onnx_messages
from edgepack_runtime.inference.errors import UnfitModelError
from edgepack_runtime.inference.outline import read_outline
from edgepack_runtime.inference.wire import WireError, fields, read_varint, signed

SAMPLES = sorted(Path(onnx.__path__[0], "backend", "test", "data").rglob("*.onnx"))


def test_it_sees_what_onnx_sees():
    assert len(SAMPLES) > 100
    for path in SAMPLES:
        raw = path.read_bytes()
        model, found = onnx.load_from_string(raw), read_outline(raw)
        assert sorted(found.operators) == operators(model), path.name
        assert (found.opsets, found.ir_version) == (opsets(model), model.ir_version), path.name
        assert found.tensors >= sum(1 for _ in all_tensors(model)), path.name


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("MODEL", "ModelProto"), ("GRAPH", "GraphProto"), ("NODE", "NodeProto"),
        ("ATTRIBUTE", "AttributeProto"), ("TENSOR", "TensorProto"),
        ("SPARSE", "SparseTensorProto"), ("PAIR", "StringStringEntryProto"),
        ("OPSET", "OperatorSetIdProto"),
    ],
)  # fmt: skip
def test_the_messages_are_those_of_onnx(shape, message):
    wire = {1: 1, 2: 5, 3: 0, 4: 0, 5: 0, 9: 2, 11: 2, 12: 2, 14: 0}
    known = getattr(onnx_messages, shape)
    declared = getattr(onnx_ml_pb2, message).DESCRIPTOR.fields
    for one in declared:
        repeats, wires = known[one.number]
        assert (wire[one.type] in wires, repeats) == (True, one.is_repeated), one.name
    # a field that is not declared any more was once
    assert {number for number in known if number not in {one.number for one in declared}} <= {6}


@functools.cache
def small(name: str) -> bytes:
    graphs = {
        "flat": hostile.adding(), "nested": hostile.nested(2), "loop": hostile.endless(),
        "tree": hostile.deep_tree(2),
    }  # fmt: skip
    return graphs[name].SerializeToString()


@pytest.mark.parametrize("name", ["flat", "nested", "loop", "tree"])
def test_no_damage_upsets_it(name):
    raw = small(name)
    refused = 0
    for place in range(len(raw)):
        for changed in (raw[place] ^ 1, raw[place] ^ 0x80, 0, 0xFF):
            refused += is_refused(raw[:place] + bytes([changed]) + raw[place + 1 :])
        refused += is_refused(raw[:place])
    assert refused > len(raw)


@given(st.binary(max_size=300), st.sampled_from(["flat", "nested", "loop"]), st.integers(0, 400))
def test_no_bytes_upset_it(noise, name, place):
    is_refused(noise)
    is_refused(small(name)[:place] + noise + small(name)[place:])


def is_refused(raw: bytes) -> bool:
    """Whatever protobuf can read is refused for a reason, or seen as it is."""
    try:
        found = read_outline(raw)
    except UnfitModelError:
        return True
    try:
        model = onnx.load_from_string(raw)
    except Exception:  # noqa: BLE001 - protobuf has checks of its own, in what is passed over
        return False
    # it also sees graphs in attributes that claim to be something else
    assert found.operators >= set(operators(model))
    return False


def test_numbers_and_short_texts_are_passed_over_in_runs():
    """Of each length that a run can hold, and one that it cannot; what follows is seen."""
    for length in (*range(66), 300):
        texts = [b"x" * length] * 3
        node = onnx.helper.make_node("Own", ["x"], ["y"], some=texts, more=[2**63 - 1, -1, 0, 300])
        raw = hostile.model([node, node.__class__(op_type="Last")]).SerializeToString()
        assert read_outline(raw).operators == {"ai.onnx:Own", "ai.onnx:Last"}
    a_tree = small("tree")
    assert read_outline(a_tree).operators == {"ai.onnx.ml:TreeEnsembleRegressor"}


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**32, 2**63, 2**64 - 1])
def test_numbers_are_read_as_they_are_written(value):
    raw, rest = b"", value
    while rest > 0x7F:
        raw, rest = raw + bytes([rest & 0x7F | 0x80]), rest >> 7
    raw += bytes([rest])
    assert read_varint(raw, 0, len(raw)) == (value, len(raw))
    assert signed(value) == (value - 2**64 if value >= 2**63 else value)


@pytest.mark.parametrize(
    "raw", [b"\x80", b"\xff" * 11, b"\x0a\x05abc", b"\x0d\0\0\0", b"\x0b", b"\x07\x01", b"\x00\x01"]
)
def test_what_is_no_message(raw):
    with pytest.raises(WireError):
        list(fields(raw, 0, len(raw)))
