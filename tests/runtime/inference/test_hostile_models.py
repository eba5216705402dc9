"""Every model that must not be: which rule it breaks, and that nothing else comes of it.

What a description forbids is refused before onnxruntime sees it; what only shows when it runs ends
in the probe's child.
"""

from __future__ import annotations

import os
import resource
import threading

import hostile_graphs as hostile
import numpy as np
import onnx
import pytest
from hostile_graphs import adding, in_attribute, model, outside, put, shaped
from onnx import TensorProto, helper, numpy_helper

from edgepack_contract.description import SessionOptions
from edgepack_contract.limits import MIB
from edgepack_runtime.inference import outline, prescan
from edgepack_runtime.inference.errors import UnfitModelError
from edgepack_runtime.inference.outline import read_outline
from edgepack_runtime.inference.probe import probe_model
from edgepack_runtime.inference.session import open_session
from edgepack_runtime.inference.variant import read_description

DATA = "model.onnx.data"
HERE = {"location": DATA, "offset": "0", "length": "16"}


def doubly():
    graph = outside(**HERE)
    graph.graph.initializer[0].external_data.add(key="offset", value="8")
    return graph


def here_and_there():
    graph = outside(**HERE)
    graph.graph.initializer[0].raw_data = bytes(16)
    return graph


def texts(tensor):
    tensor.data_type = TensorProto.STRING
    tensor.ClearField("raw_data")


def many_texts(tensor):
    texts(tensor)
    tensor.dims[:] = [2**30]
    tensor.string_data.append(b"x" * 100_000)


def hidden_operator():
    graph = hostile.nested(2)
    graph.graph.node[0].attribute[0].g.node.append(helper.make_node("Exp", ["x"], ["q"]))
    return graph


def of_domain(domain, operator, **attributes):
    node = helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)
    return model([node], opsets={"": 17, domain: 1})


def sparse():
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    return helper.make_sparse_tensor(values, indices, [2**40])


def sparse_outside():
    found = sparse()
    found.dims[:] = [4]
    found.values.CopyFrom(outside(**HERE).graph.initializer[0])
    graph = model([helper.make_node("Add", ["x", "w"], ["y"])])
    graph.graph.sparse_initializer.append(found)
    return graph


def in_subgraph(tensor):
    graph = hostile.nested(2)
    graph.graph.node[0].attribute[0].g.initializer.append(tensor)
    return graph


def checksum(graph):
    graph.graph.initializer[0].external_data.add(key="checksum", value="__class__")
    return graph


def wide(count):
    names = [f"y{n}" for n in range(count)]
    return model([helper.make_node("Split", ["x"], names, axis=0)], outputs=[])


def in_memory(place):
    """A tensor that names an address, where it would be read."""
    tensor = marked().graph.initializer[0]
    if place == "constant":
        return in_attribute(tensor)
    if place == "subgraph":
        return in_subgraph(tensor)
    graph = sparse_outside()
    (graph.graph.sparse_initializer[0].values if place == "values" else
     graph.graph.sparse_initializer[0].indices).CopyFrom(tensor)  # fmt: skip
    return graph


def marked(key="location"):
    said = {**HERE, key: "*/_ORT_MEM_ADDR_/*"}
    return outside(**said)


OUTSIDE = outside(**HERE).graph.initializer[0]
TRAINING = onnx.TrainingInfoProto().SerializeToString()
FUNCTION = helper.make_function(
    "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
    [helper.make_opsetid("", 17)],
).SerializeToString()  # fmt: skip

REFUSED = {
    # bytes that are not its own
    "a parent's file": (outside(**{**HERE, "location": f"../{DATA}"}), "external-data"),
    "an absolute path": (outside(**{**HERE, "location": "/etc/passwd"}), "external-data"),
    "its own memory": (outside(**{**HERE, "location": "/proc/self/mem"}), "external-data"),
    "another file": (outside(**{**HERE, "location": "edgepack.json"}), "external-data"),
    "no place": (outside(offset="0", length="16"), "external-data"),
    "an address in memory": (marked(), "external-data"),
    "an address as an offset": (marked("offset"), "external-data"),
    "an address of a constant": (in_memory("constant"), "external-data"),
    "an address within a subgraph": (in_memory("subgraph"), "external-data"),
    "an address of sparse values": (in_memory("values"), "external-data"),
    "an address of sparse indices": (in_memory("indices"), "external-data"),
    "a folder": (outside(**{**HERE, "location": "."}), "external-data"),
    "a negative offset": (outside(**{**HERE, "offset": "-1"}), "external-data"),
    "an enormous offset": (outside(**{**HERE, "offset": str(2**80)}), "external-data"),
    "an offset that is no number": (outside(**{**HERE, "offset": "0x10"}), "external-data"),
    "a negative length": (outside(**{**HERE, "length": "-16"}), "external-data"),
    "a length of another shape": (outside(**{**HERE, "length": "17"}), "external-data"),
    "a key of its own": (checksum(outside(**HERE)), "external-data"),
    "a key twice": (doubly(), "external-data"),
    "values here and there": (here_and_there(), "external-data"),
    "a constant outside": (in_attribute(OUTSIDE), "external-data"),
    "a sparse tensor outside": (sparse_outside(), "external-data"),
    # shapes
    "a negative size": (shaped(-1, 4), "malformed-model"),
    "a negative enormous size": (shaped(-(2**62)), "malformed-model"),
    "an enormous size": (shaped(2**62), "model-limits"),
    "sizes that overflow": (shaped(2**32, 2**32, 2**32), "model-limits"),
    "fewer bytes than its shape": (shaped(1, 4, raw=bytes(15)), "malformed-model"),
    "more bytes than its shape": (shaped(1, 4, raw=bytes(17)), "malformed-model"),
    "no bytes for its shape": (shaped(2**38), "malformed-model"),
    "an unknown type": (
        adding(change=lambda tensor: setattr(tensor, "data_type", 99)), "malformed-model",
    ),
    "more texts than there are": (adding(change=many_texts), "malformed-model"),
    "texts that are not there": (adding(change=texts), "malformed-model"),
    "segments": (
        adding(change=lambda tensor: setattr(tensor.segment, "begin", 1)), "malformed-model",
    ),
    "an enormous sparse tensor": (
        model([helper.make_node("Constant", [], ["y"], sparse_value=sparse())]), "model-limits",
    ),
    # graphs
    "a circle": (hostile.cyclic(), "malformed-model"),
    "a value made twice": (
        model([helper.make_node("Identity", ["x"], ["y"])] * 2), "malformed-model",
    ),
    "graphs in graphs": (hostile.nested(17), "model-limits"),
    "as many outputs as it likes": (wide(outline.MAX_ENDS + 1), "model-limits"),
    # operators and versions
    "an operator it does not say": (
        model([helper.make_node("Sub", ["x", "x"], ["y"])]), "undescribed-model",
    ),
    "an operator in a subgraph": (hidden_operator(), "undescribed-model"),
    "another execution provider's context": (
        of_domain("com.microsoft", "EPContext", ep_cache_context=b"../../etc/passwd"),
        "forbidden-operator",
    ),
    "a domain of its own": (of_domain("own", "Add"), "forbidden-operator"),
    "an unknown opset": (
        model([helper.make_node("Add", ["x", "x"], ["y"])], opsets={"": 999}), "undescribed-model",
    ),
    "an unknown format": (
        model([helper.make_node("Add", ["x", "x"], ["y"])], ir_version=999), "undescribed-model",
    ),
    "a function of its own": (hostile.with_field(adding(), 25, FUNCTION), "undescribed-model"),
    "training": (hostile.with_field(adding(), 20, TRAINING), "undescribed-model"),
    # no ONNX at all
    "nothing": (b"", "malformed-model"),
    "no graph": (onnx.ModelProto(ir_version=10).SerializeToString(), "malformed-model"),
    "two graphs": (
        hostile.with_field(adding(), 7, adding().graph.SerializeToString()), "malformed-model",
    ),
    "text": (b"ir_version: 10\ngraph { node { op_type: 'Add' } }", "malformed-model"),
    "a zip": (b"PK\x03\x04" + bytes(64), "malformed-model"),
    "onnxruntime's own format": (b"\x20\0\0\0ORTM" + bytes(64), "malformed-model"),
    "cut off": (adding().SerializeToString()[:-3], "malformed-model"),
    "a field that says more than there is": (b"\x3a\xff\xff\xff\xff\x0f", "malformed-model"),
    "a number without an end": (b"\x08" + b"\xff" * 64, "malformed-model"),
    "groups": (b"\x0b\x0c", "malformed-model"),
    "a name that is no text": (
        adding().SerializeToString().replace(b"Add", b"\xff\xfe\xfd"), "malformed-model",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("graph", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_unseen(variant, graph, code):
    with pytest.raises(UnfitModelError, match=r"^model\.onnx: ") as caught:
        prescan.prescan(put(variant, graph), read_description(variant))
    assert caught.value.code == code
    assert len(str(caught.value)) < 600


def test_what_is_not_refused(variant):
    found = prescan.prescan(put(variant, adding()), read_description(variant))
    assert (found.operators, found.nodes, found.tensors) == ({"ai.onnx:Add"}, 1, 1)
    assert prescan.prescan(put(variant, hostile.nested(16)), read_description(variant)).depth == 16


@pytest.mark.parametrize("size", [16, 15])
def test_tensors_beside_the_graph_lie_within_their_file(variant, size):
    (variant / DATA).write_bytes(bytes(size))
    put(variant, outside(**HERE))
    try:
        if size == 16:
            assert prescan.prescan(variant, read_description(variant)).external == [(0, 16)]
            return
        with pytest.raises(UnfitModelError, match=r"take 16 bytes of .*, which has 15"):
            prescan.prescan(variant, read_description(variant))
    finally:
        (variant / DATA).unlink()


def test_tensors_that_share_their_bytes_are_refused(variant):
    graph = outside(**HERE)
    for number in range(9):
        graph.graph.initializer.append(OUTSIDE)
        graph.graph.initializer[-1].name = f"w{number}"
    (variant / DATA).write_bytes(bytes(16))
    try:
        with pytest.raises(UnfitModelError, match="take 160 bytes"):
            prescan.prescan(put(variant, graph), read_description(variant))
    finally:
        (variant / DATA).unlink()


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_the_weights_are_a_file(variant, tmp_path, kind):
    (tmp_path / "real").write_bytes(bytes(16))
    place = variant / DATA
    {"link": lambda: place.symlink_to(tmp_path / "real"), "folder": place.mkdir,
     "fifo": lambda: os.mkfifo(place)}[kind]()  # fmt: skip
    try:
        with pytest.raises(UnfitModelError, match="is no file"):
            prescan.prescan(put(variant, outside(**HERE)), read_description(variant))
    finally:
        place.rmdir() if kind == "folder" else place.unlink()


@pytest.mark.parametrize("what", ["nodes", "tensors"])
def test_more_than_any_model_has_reason_to_have(monkeypatch, what):
    monkeypatch.setattr(outline, f"MAX_{what.upper()}", 100)
    nodes = [helper.make_node("Identity", ["x"], [f"v{n}"]) for n in range(101 * (what == "nodes"))]
    tensors = [numpy_helper.from_array(np.ones(1), f"w{n}") for n in range(101)]
    graph = model(nodes, tensors if what == "tensors" else [])
    with pytest.raises(UnfitModelError, match=f"more than 100 {what}"):
        read_outline(graph.SerializeToString())


class Asking(threading.Thread):
    """Asks a good model again and again, as requests do, while others are tried."""

    def __init__(self, folder):
        super().__init__()
        self.session = open_session(folder / "model.onnx", SessionOptions())
        self.ending = threading.Event()
        self.answered = 0
        self.failures = []

    def run(self):
        while not self.ending.is_set():
            try:
                self.session.run({"x": np.zeros((1, 4), np.float32)})
                self.answered += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the test tells
                self.failures.append(error)
            self.ending.wait(0.001)


TRIED = {
    "loops for ever": (hostile.endless(), "probe-timeout", 1.5, 0),
    "takes all memory": (hostile.growing(), "probe-memory", 30, 256 * MIB),
    "gives no numbers": (hostile.not_a_number(), "golden-mismatch", 30, 0),
    "ends its process": (hostile.deep_tree(20_000), "probe-crashed", 30, 0),
    "wants what is not there": (
        model([helper.make_node("Add", ["x", "w"], ["y"])]), "load-failed", 30, 0,
    ),
    "is of another type": (adding(weights=np.ones((1, 4))), "load-failed", 30, 0),
    "adds what does not fit": (
        adding(weights=np.ones((1, 3), np.float32)), "load-failed", 30, 0,
    ),
    "names a file": (REFUSED["an absolute path"][0], "external-data", 30, 0),
}  # fmt: skip


def test_a_model_that_computes_for_ever_is_ended_by_the_kernel(variant):
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = probe_model(put(variant, hostile.endless()), timeout_s=120, cpu_seconds=2)
    # a busy machine makes it wait, and is no reason to try it again
    assert (result.code, "processor time" in result.words) == ("probe-cpu", True), result
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started < 10


@pytest.mark.parametrize(("graph", "code", "seconds", "memory"), TRIED.values(), ids=TRIED)
def test_a_bad_model_ends_in_the_child_while_another_answers(
    variant, make_variant, capfd, graph, code, seconds, memory
):
    asking = Asking(make_variant("active"))
    asking.start()
    try:
        result = probe_model(
            put(variant, graph), timeout_s=seconds, memory_bytes=memory or None, rounds=1
        )
    finally:
        asking.ending.set()
        asking.join()
    assert (result.code, bool(result.words)) == (code, True)
    assert (asking.failures, asking.answered > 10) == ([], True)
    assert capfd.readouterr() == ("", "")


def test_what_onnx_writes_beside_a_graph_is_accepted(variant):
    graph = adding(weights=np.ones((1, 4), np.float32))
    path = variant / "model.onnx"
    onnx.save_model(
        graph, path, save_as_external_data=True, location=DATA, size_threshold=0
    )  # fmt: skip
    try:
        found = prescan.prescan(variant, read_description(variant))
        assert found.external == [(0, 16)]
        assert probe_model(variant, timeout_s=30, rounds=0).ok
    finally:
        (variant / DATA).unlink()
