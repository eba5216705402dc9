"""Branches: those with a constant condition are put in their place, with the same answers."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packager.models import build, rows, value, weight

from edgepack_packager.graphs.clean import clean_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.graphs.subgraphs import inline_branches


def clean(model):
    return run_passes(model, clean_passes())


def answers(model, folder, feeds):
    save_model(model, folder)
    return run_rows(open_folder(folder), feeds)


def product(name, seed, nodes=(), output=None, *, inner=""):
    """A branch with a product of its own; inner names are the same in all of them."""
    return helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w{inner}"], [f"h{inner}"]), *nodes],
        name,
        [],
        [value(output or f"h{inner}", ["n", 4])],
        initializer=[weight(f"w{inner}", (8, 4), seed)],
    )


def choice(condition, constants=(), nodes=(), branches=None, after=()):
    then, other = branches or (product("t", 1), product("e", 2))
    return build(
        [
            *nodes,
            helper.make_node("If", [condition], ["y"], then_branch=then, else_branch=other),
            *after,
        ],
        [value("x", ["n", 8])],
        [value(after[-1].output[0] if after else "y", ["n", 4])],
        list(constants),
    )


def same(model, folder):
    cleaned, changed = clean(model)
    one, two = (answers(m, folder / n, {"x": rows()}) for n, m in (("a", model), ("b", cleaned)))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    return [node.op_type for node in cleaned.graph.node], changed, cleaned


@pytest.mark.parametrize("taken", [True, False])
def test_a_constant_condition_leaves_one_branch(tmp_path, taken):
    model = choice("c", [numpy_helper.from_array(np.array(taken), "c")])
    kinds, changed, cleaned = same(model, tmp_path)
    assert kinds == ["MatMul"]
    assert "inline-branches" in changed
    assert len(cleaned.graph.initializer) == 1


def test_a_condition_that_folding_makes_constant(tmp_path):
    model = choice(
        "c",
        [numpy_helper.from_array(np.int64(16000), "rate")],
        [
            helper.make_node("Constant", [], ["wanted"], value_int=16000),
            helper.make_node("Equal", ["rate", "wanted"], ["c"]),
        ],
    )
    kinds, _, cleaned = same(model, tmp_path)
    assert kinds == ["MatMul"]
    assert len(cleaned.graph.initializer) == 1


def test_a_condition_of_the_input_stays(tmp_path):
    model = choice(
        "c",
        nodes=[
            helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
            helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        ],
    )
    kinds, changed, _ = same(model, tmp_path)
    assert "If" in kinds
    assert "inline-branches" not in changed


def test_a_weight_that_callers_may_override_is_no_constant():
    model = choice("c", [numpy_helper.from_array(np.array(True), "c")])
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    model.ir_version = 3
    cleaned, _ = clean(model)  # which unlists it first: a served model takes rows only
    assert [node.op_type for node in cleaned.graph.node] == ["MatMul"]


def test_branches_inside_of_branches_follow(tmp_path):
    inner = helper.make_node(
        "If",
        ["d"],
        ["z"],
        then_branch=product("it", 3, inner="i"),
        else_branch=product("ie", 4, inner="i"),
    )
    then = product("t", 1, [inner, helper.make_node("Add", ["h", "z"], ["s"])], "s")
    model = choice(
        "c",
        [
            numpy_helper.from_array(np.array(True), "c"),
            numpy_helper.from_array(np.array(False), "d"),
        ],
        branches=(then, product("e", 2)),
    )
    kinds, _, cleaned = same(model, tmp_path)
    assert kinds == ["MatMul", "MatMul", "Add"]
    assert len(cleaned.graph.initializer) == 2


def test_two_choices_may_use_the_same_names_inside(tmp_path):
    again = helper.make_node(
        "If", ["c"], ["z"], then_branch=product("t2", 5), else_branch=product("e2", 6)
    )
    model = choice(
        "c",
        [numpy_helper.from_array(np.array(True), "c")],
        after=[again, helper.make_node("Add", ["y", "z"], ["sum"])],
    )
    kinds, _, _ = same(model, tmp_path)
    assert kinds == ["MatMul", "MatMul", "Add"]


def test_a_branch_that_only_passes_a_value_on(tmp_path):
    passing = helper.make_graph(
        [helper.make_node("Identity", ["b"], ["o"])], "p", [], [value("o", ["n", 4])]
    )
    model = choice(
        "c",
        [numpy_helper.from_array(np.array(False), "c"), weight("k", (8, 4), 9)],
        [helper.make_node("MatMul", ["x", "k"], ["b"])],
        branches=(product("t", 1), passing),
    )
    kinds, _, _ = same(model, tmp_path)
    assert kinds == ["MatMul", "Identity"]


def test_a_branch_that_gives_a_constant():
    constant = helper.make_graph([], "k", [], [value("k", [1, 4])], [weight("k", (1, 4))])
    model = choice(
        "c",
        [numpy_helper.from_array(np.array(False), "c")],
        branches=(product("t", 1), constant),
    )
    assert inline_branches(model)
    (node,) = model.graph.node
    assert (node.op_type, list(node.input)) == ("Identity", [model.graph.initializer[0].name])


def test_a_condition_that_cannot_be_evaluated_stays():
    model = choice(
        "c",
        [numpy_helper.from_array(np.int64(1), "one")],
        [helper.make_node("Unheard", ["one"], ["c"])],
    )
    assert not inline_branches(model)
