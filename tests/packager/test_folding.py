"""Pre- and postprocessing become part of the graph, and say what numpy says."""

import re
import tomllib
import typing
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packager.models import build, cnn, mlp, recurrent, rows, value

from edgepack_packager import InputError, Recipe, RecipeError
from edgepack_packager.graphs.folding import PREFIXES, StepsFile
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.graphs.step_kinds import Step
from edgepack_packager.preparing import prepare_source
from edgepack_packager.quantize.operators import GROWN_TYPES, STATIC_TYPES, static_nodes
from edgepack_packager.recipe import InputRule
from edgepack_packager.recipe_file import read_recipe
from edgepack_packager.sources import SourceModel


def identity(shape, kind=TensorProto.FLOAT):
    return build(
        [helper.make_node("Identity", ["x"], ["y"])], [value("x", shape, kind)],
        [value("y", shape, kind)],
    )  # fmt: skip


@pytest.fixture
def fold(tmp_path):
    """Folds texts (steps) or graphs into a model; gives the model, and runs it on rows."""

    def make(model, *, before=None, behind=None, answer=None, inputs=None):
        paths = {}
        for name, made in (("preprocess", before), ("postprocess", behind)):
            if made is None:
                continue
            paths[name] = tmp_path / f"{name}.{'toml' if isinstance(made, str) else 'onnx'}"
            if isinstance(made, str):
                paths[name].write_text(made)
            else:
                onnx.save(made, paths[name])
        recipe = Recipe(
            model=tmp_path / "m.onnx", name="m", version="1.0.0", inputs=inputs or {}, **paths
        )
        source = SourceModel(
            graph=model, digest="sha256:" + "0" * 64, framework="test", task=None, features=None,
            classes=None, answer=answer, tools={}, passes=(),
        )  # fmt: skip
        folded, digests = prepare_source(source, recipe, tmp_path)
        assert sorted(digests) == sorted(paths)
        onnx.checker.check_model(folded.graph, full_check=True)
        save_model(folded.graph, tmp_path / "folded")
        return folded, partial(run_rows, open_folder(tmp_path / "folded"))

    return make


def run_plain(model, feeds, tmp_path):
    save_model(model, tmp_path / "plain")
    return run_rows(open_folder(tmp_path / "plain"), feeds)


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)
NUMBERS = rows(4, n=6)


def nearest(images, height, width):
    down = (np.arange(height) * images.shape[1] / height).astype(int)
    across = (np.arange(width) * images.shape[2] / width).astype(int)
    return images[:, down][:, :, across]


def softmax(values):
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


NUMERIC = {
    "cast": ('op = "cast"\nto = "float64"', lambda x: x.astype(np.float64)),
    "scale": ('op = "scale"\nfactor = 0.5', lambda x: x * np.float32(0.5)),
    "offset": ('op = "offset"\nby = -2', lambda x: x - 2),
    "normalize": ('op = "normalize"\nmean = 1\nstd = 2', lambda x: (x - 1) / 2),
    "normalize by column": (
        'op = "normalize"\nmean = [1, 2, 3, 4]\nstd = [1, 2, 4, 8]',
        lambda x: (x - [1, 2, 3, 4]) / [1, 2, 4, 8],
    ),
    "clip": ('op = "clip"\nmin = -0.5\nmax = 0.25', lambda x: np.clip(x, -0.5, 0.25)),
    "clip one end": ('op = "clip"\nmin = 0', lambda x: np.maximum(x, 0)),
    "log": ('op = "log"\nplus = 10', lambda x: np.log(x + 10)),
    "reshape": ('op = "reshape"\nshape = [2, -1]', lambda x: x.reshape(-1, 2, 2)),
    "softmax": ('op = "softmax"', softmax),
    "sigmoid": ('op = "sigmoid"', lambda x: 1 / (1 + np.exp(-x))),
    "argmax": ('op = "argmax"', lambda x: x.argmax(axis=-1)),
    "threshold": ('op = "threshold"\nat = 0.1', lambda x: (x >= np.float32(0.1)).astype(np.int64)),
}


@pytest.mark.parametrize("name", NUMERIC)
def test_a_step_behind_a_model_says_what_numpy_says(fold, name):
    text, expected = NUMERIC[name]
    folded, run = fold(identity(["n", 4]), behind=f"[[steps]]\n{text}\n")
    found = run({"x": NUMBERS})
    assert list(found) == ["y"]
    wanted = expected(NUMBERS)
    assert found["y"].shape == wanted.shape
    assert found["y"].dtype.kind == wanted.dtype.kind
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-5, atol=1e-6)
    assert folded.passes == ("fold-postprocess",)


IMAGES = {
    "nearest": ("nhwc", "nearest", (3, 4), lambda x: nearest(x, 3, 4)),
    "nearest up": ("nhwc", "nearest", (9, 8), lambda x: nearest(x, 9, 8)),
    "linear": (
        "nhwc", "linear", (3, 4),
        lambda x: (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_resized(fold, name, layout):
    _, mode, (height, width), expected = IMAGES[name]
    images = PIXELS.astype(np.float32)
    wanted = expected(images)
    shape = ["n", 6, 8, 3]
    if layout == "nchw":
        images, wanted, shape = np.moveaxis(images, 3, 1), np.moveaxis(wanted, 3, 1), ["n", 3, 6, 8]
    step = f'op = "resize"\nsizes = [{height}, {width}]\nmode = "{mode}"\nlayout = "{layout}"'
    _, run = fold(identity(shape), behind=f"[[steps]]\n{step}\n")
    np.testing.assert_allclose(run({"x": images})["y"], wanted, rtol=1e-5)


CAMERA = """
[inputs.x]
dtype = "uint8"
shape = ["batch", 6, 8, 3]
[[steps]]
op = "layout"
change = "nhwc-nchw"
[[steps]]
op = "resize"
sizes = [12, 12]
mode = "nearest"
[[steps]]
op = "scale"
factor = 0.00392156862745098
[[steps]]
op = "normalize"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
"""


def prepared(images):
    resized = np.moveaxis(nearest(images, 12, 12), 3, 1).astype(np.float32) / 255
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in
                 ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))  # fmt: skip
    return (resized - mean) / std


def test_a_camera_s_bytes_go_straight_into_the_graph(fold, tmp_path):
    folded, run = fold(cnn(), before=CAMERA)
    (only,) = folded.graph.graph.input
    assert only.name == "x"
    assert only.type.tensor_type.elem_type == TensorProto.UINT8
    wanted = run_plain(cnn(), {"x": prepared(PIXELS)}, tmp_path)
    np.testing.assert_allclose(run({"x": PIXELS})["scores"], wanted["scores"], rtol=1e-4)


def test_the_framework_answers_behind_the_same_preprocessing(fold):
    seen = []

    def answer(feeds):
        seen.append(feeds["x"])
        return {"scores": feeds["x"].mean(axis=(2, 3))}

    folded, _ = fold(cnn(), before=CAMERA, answer=answer)
    found = folded.answer({"x": PIXELS})["scores"]
    np.testing.assert_allclose(seen[0], prepared(PIXELS), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, prepared(PIXELS).mean(axis=(2, 3)), rtol=1e-4, atol=1e-5)


LABELS = """
[[steps]]
op = "argmax"
input = "probabilities"
output = "label"
[[steps]]
op = "top-k"
input = "probabilities"
k = 2
output = "best"
places = "where"
[[steps]]
op = "select"
outputs = ["label", "probabilities", "where"]
"""


def test_outputs_are_added_and_selected(fold, tmp_path):
    _, run = fold(mlp(), behind=LABELS)
    plain = run_plain(mlp(), {"x": rows()}, tmp_path)["probabilities"]
    found = run({"x": rows()})
    assert list(found) == ["label", "probabilities", "where"]
    np.testing.assert_array_equal(found["label"], plain.argmax(axis=1))
    np.testing.assert_array_equal(found["where"], np.argsort(-plain, axis=1)[:, :2])
    np.testing.assert_allclose(found["probabilities"], plain, rtol=1e-6)

    def answer(feeds):
        return {"probabilities": feeds["x"][:, :3].astype(np.float64)}

    answers = fold(mlp(), behind=LABELS, answer=answer)[0].answer({"x": rows()})
    np.testing.assert_array_equal(answers["label"], rows()[:, :3].argmax(axis=1))


def test_graphs_are_folded_in_by_name_or_place(fold, tmp_path):
    scaled = build(
        [helper.make_node("Mul", ["raw", "ten"], ["out"])],
        [value("raw", ["n", 8])], [value("out", ["n", 8])],
        [numpy_helper.from_array(np.float32(10), "ten")], opsets={"": 13},
    )  # fmt: skip
    less = build(
        [helper.make_node("Neg", ["p"], ["less"])], [value("p", ["n", 3])],
        [value("less", ["n", 3])], opsets={"": 20},
    )  # fmt: skip
    folded, run = fold(mlp(), before=scaled, behind=less)
    assert [item.name for item in folded.graph.graph.input] == ["raw"]
    wanted = run_plain(mlp(), {"x": rows() * 10}, tmp_path)["probabilities"]
    np.testing.assert_allclose(run({"raw": rows()})["less"], -wanted, rtol=1e-5)


def test_a_step_of_several_inputs_leaves_the_others(fold):
    steps = '[[steps]]\nop = "scale"\ninput = "x"\nfactor = 2\n'
    folded, run = fold(
        recurrent(), before=steps, inputs={"state": InputRule(role="state", source="next")}
    )
    feeds = {"x": rows(3, n=5), "state": np.zeros((5, 4), np.float32)}
    assert {item.name for item in folded.graph.graph.input} == {"x", "state"}
    w = numpy_helper.to_array(next(t for t in recurrent().graph.initializer if t.name == "w"))
    np.testing.assert_allclose(run(feeds)["next"], np.tanh(2 * feeds["x"] @ w), rtol=1e-5)


def test_a_constant_takes_the_place_of_an_input(fold):
    model = build(
        [
            helper.make_node("Cast", ["rate"], ["r"], to=1),
            helper.make_node("Mul", ["x", "r"], ["y"]),
        ],
        [value("x", ["n", 2]), value("rate", [], TensorProto.INT64)], [value("y", ["n", 2])],
    )  # fmt: skip
    steps = '[[steps]]\nop = "constant"\noutput = "rate"\nvalue = 3\ndtype = "int64"\n'
    folded, run = fold(model, before=steps)
    assert [item.name for item in folded.graph.graph.input] == ["x"]
    np.testing.assert_allclose(run({"x": rows(2)})["y"], 3 * rows(2))


def test_what_is_folded_in_is_never_quantized(fold):
    projected = build(
        [helper.make_node("MatMul", ["raw", "basis"], ["out"])],
        [value("raw", ["n", 8])], [value("out", ["n", 8])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "basis")],
    )  # fmt: skip
    behind = '[[steps]]\nop = "scale"\nfactor = 2\n'
    folded, _ = fold(mlp(), before=projected, behind=behind)
    nodes = static_nodes(folded.graph, (*STATIC_TYPES, *GROWN_TYPES))
    assert all(not name.startswith(PREFIXES) for name in nodes)
    kinds = [node.op_type for node in folded.graph.graph.node if node.name.startswith(PREFIXES)]
    assert "MatMul" in kinds
    assert "Mul" in kinds


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"before": "[[steps]]\nop = 'blur'"}, "bad-steps", "blur"),
        ({"before": "[[steps]]\nop = 'scale'"}, "bad-steps", "factor"),
        ({"before": "[[steps]]\nop = 'scale'\nfactor = 2\nby = 3"}, "bad-steps", "by"),
        ({"before": "steps = ["}, "bad-toml", "not TOML"),
        ({"before": "[[steps]]\nop = 'cast'\nto = 'int64'"}, "fold-type", "takes float32"),
        ({"before": "[[steps]]\nop = 'sigmoid'\noutput = 'z'"}, "fold-names", "'z'"),
        ({"before": "[[steps]]\nop = 'sigmoid'\ninput = 'q'"}, "bad-step", r"steps\[0\].*'q'"),
        ({"before": "[[steps]]\nop = 'layout'\nchange = 'nhwc-nchw'"}, "bad-step", "4 dimensions"),
        ({"behind": "[[steps]]\nop = 'normalize'\nmean = 0\nstd = 0"}, "bad-step", "is 0"),
        ({"behind": "[[steps]]\nop = 'select'\noutputs = ['label']"}, "bad-step", "'label'"),
        ({"behind": "[inputs.x]\nshape = [1]\n[[steps]]\nop = 'sigmoid'"}, "bad-steps", "only a"),
        ({"behind": "[[steps]]\nop = 'sigmoid'\noutput = 'h'"}, "fold-names", "'h' inside"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(fold, options, code, words):
    with pytest.raises(RecipeError, match=words) as caught:
        fold(mlp(), **options)
    assert caught.value.code == code


def test_a_hostile_graph_is_refused_here_too(fold):
    looped = build(
        [helper.make_node("Add", ["raw", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])],
        [value("raw", ["n", 8])], [value("b", ["n", 8])],
    )  # fmt: skip
    with pytest.raises(InputError, match="circle") as caught:
        fold(mlp(), before=looped)
    assert caught.value.code == "cyclic-graph"


PAGE = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text(encoding="utf-8")


def test_the_page_names_every_step_and_option_and_its_examples_are_read():
    for kind in typing.get_args(Step):
        op = kind.__struct_config__.tag
        (line,) = re.findall(rf"^\| `{op}` \|.*$", PAGE, re.MULTILINE)
        own = set(kind.__struct_fields__) - {"input", "output"}
        assert all(f"`{name}`" in line for name in own), op
    blocks = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
    files = [msgspec.convert(block, StepsFile) for block in blocks if "steps" in block]
    assert [len(file.steps) for file in files] == [4, 3]


def test_the_recipe_of_the_page_is_read(tmp_path):
    (text,) = re.findall(r"```toml\n(# recipe.*?)```", PAGE, re.DOTALL)
    (tmp_path / "recipe.toml").write_text(text)
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.inputs["h"] == InputRule(role="state", source="h_next")
    assert recipe.inputs["x"].columns == ("temperature", "pressure")
