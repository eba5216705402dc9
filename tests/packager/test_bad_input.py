"""Models that cannot be packed: each is refused by its own code and words, and nothing is left."""

import os
import re
from functools import partial
from random import Random

import numpy as np
import onnx
import pytest
from tests.packager import hostile
from tests.packager.models import cnn, mlp, recurrent, rows

from edgepack_cli.main import run
from edgepack_packager import ConversionError, InputError
from edgepack_packager.graphs import first_run
from edgepack_packager.graphs.cleaning import open_original
from edgepack_packager.graphs.tensors import check_finite_weights
from edgepack_packager.sources import LoadContext
from edgepack_packager.sources.from_onnx import load_onnx


def save(path, made):
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def load(path):
    return load_onnx(path, LoadContext(path.parent))


@pytest.mark.parametrize("name", hostile.BAD)
def test_a_hostile_graph_is_refused_by_name(tmp_path, name, monkeypatch):
    make, code, words = hostile.BAD[name]
    short = partial(first_run.check_first_run, seconds=1.0 if name == "endless" else 60.0)
    monkeypatch.setattr("edgepack_packager.sources.from_onnx.check_first_run", short)
    path = save(tmp_path / "m.onnx", make())
    with pytest.raises(InputError, match=words) as caught:
        load(path)
    assert caught.value.code == code
    assert str(caught.value).startswith("m.onnx") or code.startswith("model-")


@pytest.mark.parametrize("name", ["claim", "cycle", "domain", "truncated"])
def test_a_build_of_it_exits_with_3_and_leaves_nothing(tmp_path, name, capsys):
    make, _, words = hostile.BAD[name]
    path = save(tmp_path / "m.onnx", make())
    np.savez(tmp_path / "rows.npz", x=rows(4))
    output = tmp_path / "out"
    output.mkdir()
    arguments = ["build", str(path), "--name", "m", "--version", "1.0.0", "--json"]
    arguments += ["--data", str(tmp_path / "rows.npz"), "-o", str(output / "m.edgepack")]
    assert run(arguments) == 3
    assert re.search(words, capsys.readouterr().err)
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "number", "count", "words"),
    [
        ("w1", np.nan, 3, r"'w1': 3 of 128 values"),
        ("w2", np.inf, 1, r"'w2': 1 of 48 values"),
        ("b1", np.nan, 2, r"'b1': 2 of 16 values"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(name, number, count, words):
    with pytest.raises(ConversionError, match=words) as caught:
        check_finite_weights(hostile.nonfinite(name, number, count))
    assert caught.value.code == "nonfinite-weights"


def test_a_mask_may_hold_infinities():
    check_finite_weights(hostile.nonfinite("b1", -np.inf, 4))


def test_nodes_in_the_wrong_order_are_sorted(tmp_path):
    model = mlp()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    source = load(save(tmp_path / "m.onnx", model))
    assert source.graph.graph.node[0].op_type == "MatMul"
    onnx.checker.check_model(source.graph)
    assert "sort-nodes" in source.passes


def test_local_functions_are_inlined(tmp_path):
    made = hostile.functions(("F", ["Relu", "G"]), ("G", ["Relu"]), call="F")
    source = load(save(tmp_path / "m.onnx", made))
    assert [node.op_type for node in source.graph.graph.node] == ["Relu", "Relu"]
    assert "inline-functions" in source.passes


def test_a_quantized_graph_is_said_to_be_one(tmp_path):
    scale = onnx.numpy_helper.from_array(np.float32(0.1), "s")
    model = hostile.chain(
        hostile.node("QuantizeLinear", "x s", "q"),
        hostile.node("DequantizeLinear", "q s", "y"),
        weights=[scale],
    )
    source = load(save(tmp_path / "m.onnx", model))
    assert any("quantized already" in text for text in source.warnings)


def external(folder, **entries):
    """A model whose first weight lies in a file; ``entries`` say where in other words."""
    path = folder / "m.onnx"
    onnx.save(
        mlp(features=200, hidden=100), path,
        save_as_external_data=True, location="weights", size_threshold=0,
    )  # fmt: skip
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    said = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, text in said.items():
        tensor.external_data.add(key=key, value=text)
    return save(path, model)


@pytest.mark.parametrize(
    ("entries", "code", "words"),
    [
        ({"location": "../secret"}, "unsafe-weights", "plain file beside it"),
        ({"location": "/etc/hostname"}, "unsafe-weights", "plain file beside it"),
        ({"location": "sub/secret"}, "unsafe-weights", "plain file beside it"),
        ({"location": ".."}, "unsafe-weights", "plain file beside it"),
        ({"location": ""}, "unsafe-weights", "plain file beside it"),
        ({"location": "soft"}, "unsafe-weights", "no link"),
        ({"location": "hard"}, "unsafe-weights", "no link"),
        ({"location": "pipe"}, "unsafe-weights", "plain file"),
        ({"location": "absent"}, "missing-weights", "is missing"),
        ({"offset": "-1"}, "bad-weights", "offset '-1'"),
        ({"length": "many"}, "bad-weights", "length 'many'"),
        ({"offset": "99999999"}, "short-weights", "bytes 99999999 to"),
        ({"length": "99999999"}, "short-weights", "bytes 0 to 99999999"),
        ({"length": "8"}, "bad-tensor", "claims 80000 bytes, it holds 8"),
    ],
)
def test_weights_that_lie_elsewhere_are_not_read(tmp_path, entries, code, words):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(80_000))
    (folder / "sub" / "secret").write_bytes(bytes(80_000))
    (folder / "soft").symlink_to(secret)
    (folder / "hard").hardlink_to(secret)
    os.mkfifo(folder / "pipe")
    path = external(folder, **entries)
    with pytest.raises(InputError, match=words) as caught:
        load(path)
    assert caught.value.code == code


def test_weights_of_sub_graphs_are_read_as_strictly(tmp_path):
    model = hostile.claiming_inside()
    tensor = model.graph.node[0].attribute[0].g.node[0].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(InputError, match="secret") as caught:
        load(save(tmp_path / "m.onnx", model))
    assert caught.value.code == "unsafe-weights"


def damaged(raw, random):
    """``raw`` with a few bytes changed, cut out or put in."""
    raw = bytearray(raw)
    for _ in range(random.choice([1, 1, 2, 4])):
        place = random.randrange(len(raw))
        match random.randrange(4):
            case 0:
                raw[place] = random.randrange(256)
            case 1:
                raw[place] ^= 1 << random.randrange(8)
            case 2:
                del raw[place : place + random.randrange(1, 9)]
            case _:
                raw[place:place] = bytes(random.choices([0, 1, 127, 128, 255], k=3))
    return bytes(raw)


def test_damaged_files_load_or_are_refused_in_words(tmp_path):
    """What survives the checks is given to the runtime, which must refuse or run it too."""
    random = Random(5)
    seeds = [
        model.SerializeToString() for model in (mlp(2, 4, 2), cnn(2), recurrent(rows_last=True))
    ]
    refused = 0
    for turn in range(300):
        path = save(tmp_path / "m.onnx", damaged(random.choice(seeds), random))
        try:
            source = load(path)
            check_finite_weights(source.graph)
            open_original(source.graph, tmp_path / f"original-{turn}")
        except InputError:
            refused += 1
    assert 100 < refused < 300
