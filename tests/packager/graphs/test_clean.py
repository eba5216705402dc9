"""Cleaning: each flaw that real files have, and that the answers stay the same."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.packager.models import build, cnn, mlp, rows, value, weight

from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH
from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.clean import (
    MAX_IR,
    clean_passes,
    fix_batch,
    loading_passes,
    name_nodes,
    operators,
    opsets,
    raise_opset,
    serialise,
)
from edgepack_packager.graphs.passes import GraphPass, run_passes
from edgepack_packager.graphs.running import model_files, open_folder, run_rows, save_model


def clean(model):
    return run_passes(model, clean_passes())


def answers(model, folder, feeds):
    save_model(model, folder)
    return run_rows(open_folder(folder), feeds)


def test_a_pass_leaves_its_input_alone_and_the_history_is_in_the_error():
    model = mlp()
    before = model.SerializeToString()
    broken = GraphPass("broken", lambda m: True, ensures=lambda m: "two wrongs")
    with pytest.raises(ConversionError, match=r"after pass broken: two wrongs .*name-nodes"):
        run_passes(model, [GraphPass("name-nodes", name_nodes), broken])
    assert model.SerializeToString() == before


@pytest.mark.parametrize("model", [mlp(), cnn()])
def test_cleaning_keeps_the_answers_and_is_idempotent(tmp_path, model):
    shape = [d.dim_value or 4 for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    cleaned, _ = clean(model)
    one, two = answers(model, tmp_path / "a", feeds), answers(cleaned, tmp_path / "b", feeds)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    again, changed = clean(cleaned)
    assert changed == ()
    assert serialise(again) == serialise(cleaned)


def test_weights_listed_as_inputs_are_taken_out():
    model = mlp(ir=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(value(tensor.name, list(tensor.dims)))
    cleaned, changed = clean(model)
    assert [item.name for item in cleaned.graph.input] == ["x"]
    assert "unlist-initializers" in changed


def test_shapes_of_weights_are_stated_by_the_weights_alone():
    model = mlp()
    model.graph.value_info.append(value("w1", [8, 16]))
    cleaned, passes = run_passes(model, clean_passes())
    assert "w1" not in {item.name for item in cleaned.graph.value_info}
    assert "unlist-initializers" in passes


def test_repeated_opset_imports_are_merged():
    model = mlp()
    model.opset_import.append(helper.make_opsetid("", 17))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    cleaned, changed = clean(model)
    assert list(opsets(cleaned)) == ["ai.onnx"]
    assert "merge-opsets" in changed


def test_a_zipmap_becomes_its_tensor(tmp_path):
    model = mlp()
    model.graph.node.append(
        helper.make_node(
            "ZipMap", ["probabilities"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9]
        )
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    model.graph.output.pop()
    model.graph.output.append(value("maps", [None, 3]))
    cleaned, changed = clean(model)
    assert "remove-zipmap" in changed
    found = answers(cleaned, tmp_path, {"x": rows()})
    assert found["maps"].shape == (64, 3)


def test_a_zipmap_beside_its_tensor_is_dropped():
    model = mlp()
    model.graph.node.append(
        helper.make_node("ZipMap", ["probabilities"], ["maps"], domain="ai.onnx.ml")
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    model.graph.output.append(value("maps", [None, 3]))
    cleaned, _ = clean(model)
    assert [item.name for item in cleaned.graph.output] == ["probabilities"]


def test_a_newer_file_format_and_opset_are_lowered_to_what_is_needed(tmp_path):
    model = mlp(opsets={"": 28}, ir=14)
    cleaned, changed = clean(model)
    assert {"lowest-opset", "lowest-ir"} <= set(changed)
    assert opsets(cleaned) == {"ai.onnx": 14}  # since when Add and Relu are what they are
    assert cleaned.ir_version <= MAX_IR
    assert answers(cleaned, tmp_path, {"x": rows()})["probabilities"].shape == (64, 3)


def test_what_makes_bytes_differ_is_stripped():
    one, two = mlp(), mlp()
    two.producer_name, two.producer_version, two.doc_string = "other", "2", "made on a Tuesday"
    two.graph.name, two.graph.doc_string = "elsewhere", "text"
    two.graph.node[0].doc_string = "File /home/somebody/train.py"
    two.metadata_props.add(key="date", value="today")
    assert serialise(clean(one)[0]) == serialise(clean(two)[0])
    assert b"somebody" not in serialise(clean(two)[0])


def test_nodes_without_names_get_them():
    cleaned, _ = clean(mlp())
    names = [node.name for node in cleaned.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_old_opsets_are_raised_for_quantization(tmp_path):
    model = build(
        [helper.make_node("Softmax", ["x"], ["y"], axis=1)],
        [value("x", ["n", 4])],
        [value("y", ["n", 4])],
        opsets={"": 9},
        ir=4,
    )
    raised = raise_opset(model)
    feeds = {"x": rows(4)}
    one, two = answers(model, tmp_path / "a", feeds), answers(raised, tmp_path / "b", feeds)
    assert np.allclose(one["y"], two["y"])
    assert raise_opset(mlp()) is None


def test_a_batch_can_be_fixed(tmp_path):
    fixed = fix_batch(clean(mlp())[0])
    save_model(fixed, tmp_path)
    assert open_folder(tmp_path).inputs[0].shape == (1, 8)


def test_large_weights_go_beside_the_graph_and_bytes_repeat(tmp_path):
    model, _ = clean(mlp(features=700, hidden=500))
    save_model(model, tmp_path / "a")
    save_model(model, tmp_path / "b")
    files = model_files(tmp_path / "a")
    assert set(files) == {MODEL_PATH, MODEL_DATA_PATH}
    assert files[MODEL_PATH].stat().st_size < 10_000
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert open_folder(tmp_path / "a").run({"x": rows(700, 2)})["probabilities"].shape == (2, 3)


def test_small_weights_stay_inside(tmp_path):
    save_model(mlp(), tmp_path)
    assert set(model_files(tmp_path)) == {MODEL_PATH}


def test_operators_of_branches_are_listed():
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["a"])], "t", [], [value("a", [1])])
    other = helper.make_graph([helper.make_node("Tanh", ["x"], ["b"])], "e", [], [value("b", [1])])
    model = build(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        [value("x", [1]), value("c", [], TensorProto.BOOL)],
        [value("y", [1])],
    )
    assert operators(model) == ["ai.onnx:If", "ai.onnx:Relu", "ai.onnx:Tanh"]


def test_loading_passes_change_no_operator():
    model = onnx.ModelProto()
    model.CopyFrom(mlp())
    model.graph.initializer.append(weight("unused", (2,)))
    loaded, _ = run_passes(model, loading_passes())
    assert [node.op_type for node in loaded.graph.node] == [n.op_type for n in model.graph.node]
