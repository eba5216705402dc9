"""Whole builds: of digits, of ONNX files, without labels, outside gates, and repeated by a lock."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.packager.models import build as build_graph
from tests.packager.models import cnn, mlp, value, weight

from edgepack_contract.bundle import (
    BundleFile,
    open_evidence,
    open_variant,
    read_blob,
    verify_bundle_file,
)
from edgepack_contract.description import GOLDEN_PATH, MODEL_PATH, REFERENCE_PATH
from edgepack_contract.errors import SigningKeyError
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.layout import unpack
from edgepack_contract.reference import parse_reference, reference_id
from edgepack_packager import (
    AccuracyGateError,
    BudgetError,
    ConversionError,
    InputError,
    LockError,
    Recipe,
    RecipeError,
    build,
    building,
    render_table,
)
from edgepack_runtime.inference.golden import check_golden
from edgepack_runtime.inference.probe import probe_model
from edgepack_runtime.inference.variant import open_variant as open_unpacked
from edgepack_runtime.inference.variant import read_description


@pytest.fixture
def recipe(digits, tmp_path):
    def make(**changes):
        values = {
            "model": digits / "network.skops",
            "name": "digits",
            "version": "1.0.0",
            "overwrite": True,
            "output": tmp_path / "digits.edgepack",
            "data": digits / "rows.npz",
            "label": "label",
        }
        return Recipe(**{**values, **changes})

    return make


def descriptions(path):
    with BundleFile.open(path) as file:
        bundle = verify_bundle_file(file, keyring=None)
        return [open_variant(bundle, file, item).description for item in bundle.variants]


def read_reference(path):
    with BundleFile.open(path) as file:
        bundle = verify_bundle_file(file, keyring=None)
        variant = open_variant(bundle, file, bundle.variants[0])
        raw = read_blob(file, variant.layers[REFERENCE_PATH], what="r", max_bytes=2**24)
    return parse_reference(raw)


def nothing_written(recipe):
    return list(recipe.output.parent.iterdir()) == []


def test_digits_become_a_bundle_that_a_device_accepts(recipe, tmp_path):
    told = []
    wanted = recipe(min_metric={"accuracy": 0.8})
    result = build(wanted, told.append)
    assert [item.step for item in told if not item.detail] == [
        "load",
        "search",
        "describe",
        "write",
    ]
    names = [row.name for row in result.table]
    assert names[0] == "fp32"
    assert {"int8-static", "int8-dynamic"} <= set(names)
    assert sum(row.chosen for row in result.table) == 1
    assert all(row.reason and "n=540" in row.metric for row in result.table)

    (description,) = descriptions(wanted.output)
    assert description.task == "classification"
    assert description.inputs[0].shape == ["batch", 64]
    gates = {gate.name: gate.verdict for gate in description.gates}
    assert gates == {"max-drop": "pass", "min-metric": "pass"}
    metrics = {metric.name: metric for metric in description.metrics}
    assert metrics["accuracy"].low < metrics["accuracy"].value < metrics["accuracy"].high
    assert metrics["accuracy"].n == 540

    with BundleFile.open(wanted.output) as file:
        assert unpack(file, tmp_path / "tree").digest == result.digest
    (folder,) = [path for path in (tmp_path / "tree").iterdir() if path.is_dir()]
    probed = probe_model(folder, timeout_s=60)
    assert probed.ok, probed.words


def test_the_table_is_aligned_and_gives_every_reason(recipe):
    result = build(recipe())
    lines = render_table(result).splitlines()
    column = lines[0].index("size")
    assert all(line[column - 1] == " " for line in lines[: len(result.table) + 1])
    assert [line for line in lines if line.startswith("*")] != []
    assert max(map(len, lines)) <= 100
    text = " ".join(render_table(result).split())
    assert all(" ".join(row.reason.split()) in text for row in result.table)


def test_without_labels_the_build_says_so_and_passes(recipe, digits):
    result = build(recipe(data=digits / "unlabelled.npz", label=None))
    assert all("accuracy: not measured" in row.metric for row in result.table)
    assert all("agreement" in row.metric for row in result.table)
    assert any("accuracy is not measured" in text for text in result.warnings)
    (description,) = descriptions(result.path)
    assert [metric.name for metric in description.metrics] == ["agreement"]


def test_without_data_it_is_fp32_with_nothing_claimed(recipe):
    result = build(recipe(data=None, label=None))
    (description,) = descriptions(result.path)
    assert description.precision == "fp32"
    assert description.metrics == []
    assert [gate.verdict for gate in description.gates] == ["not_measured"]
    assert not description.has_reference
    assert any("no data" in text for text in result.warnings)


def test_an_onnx_file_gives_the_same_figures_as_its_source(recipe, digits, tmp_path):
    import skops.io
    from skl2onnx import to_onnx

    model = skops.io.load(
        digits / "network.skops",
        trusted=["sklearn.neural_network._stochastic_optimizers.AdamOptimizer"],
    )
    graph = to_onnx(model, np.zeros((1, 64), np.float32), target_opset=17)  # with a ZipMap
    assert any(node.op_type == "ZipMap" for node in graph.graph.node)
    (tmp_path / "in").mkdir()
    onnx.save(graph, tmp_path / "in" / "network.onnx")
    one = build(recipe())
    two = build(recipe(model=tmp_path / "in" / "network.onnx"))
    assert one.table[0].metric == two.table[0].metric
    (description,) = descriptions(two.path)
    assert description.outputs[-1].labels == list("0123456789")
    assert "remove-zipmap" in description.provenance.passes


def test_trees_stay_in_float_and_the_build_says_why(recipe, digits):
    result = build(recipe(model=digits / "forest.skops"))
    assert [row.name for row in result.table] == ["fp32"]
    assert any("no int8 form" in text for text in result.warnings)


def test_a_convolution_is_quantized_and_described(recipe, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(cnn(200), folder / "cnn.onnx")
    x = np.random.default_rng(0).standard_normal((800, 3, 12, 12)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x)
    result = build(
        recipe(
            model=folder / "cnn.onnx", data=folder / "rows.npz", label=None,
            task="classification", optimize="size", max_drop="10pt",
        )
    )  # fmt: skip
    (description,) = descriptions(result.path)
    assert description.precision == "int8-static"
    assert description.quantization["activations"] == "uint8"
    assert description.inputs[0].shape == ["batch", 3, 12, 12]


def test_several_targets_become_variants_most_generic_first(recipe):
    targets = ("rpi5", "x86-64-v3", "generic-arm64")
    result = build(recipe(targets=targets))
    found = descriptions(result.path)
    assert [item.variant for item in found if item.variant in targets] == [
        "generic-arm64", "rpi5", "x86-64-v3",
    ]  # fmt: skip
    assert {item.platform.architecture for item in found if "rpi5" in item.variant} == {"arm64"}
    foreign = [row for row in result.table if row.target == "rpi5"]
    assert all(row.latency_ms is None for row in foreign)
    assert any("not measured" in text and "rpi5" in text for text in result.warnings)


def test_a_latency_budget_of_another_machine_is_carried_not_met(recipe):
    result = build(recipe(targets=("rpi5",), max_latency_ms=5.0))
    for description in descriptions(result.path):
        assert description.budgets.latency_ms == 5.0
        gates = {gate.name: gate.verdict for gate in description.gates}
        assert gates["max-latency"] == "not_measured"


def test_memory_is_measured_by_the_devices_own_probe(recipe):
    result = build(recipe(max_memory_bytes=2**31))
    (description,) = descriptions(result.path)
    assert {gate.name: gate.verdict for gate in description.gates}["max-memory"] == "pass"
    trials = result.report["targets"][0]["candidates"]
    measured = [item for item in trials if item["memory_bytes"] is not None]
    assert {"fp32", trials[0]["name"]} <= {item["name"] for item in measured}
    assert all(10**6 < item["memory_bytes"] < 2**31 for item in measured)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"min_metric": {"accuracy": 0.999}}, AccuracyGateError, "the nearest is .*under 0.999"),
        ({"max_size_bytes": 5000}, BudgetError, "the nearest is .*over 5,000"),
        ({"max_latency_ms": 1e-6}, BudgetError, "over 1e-06"),
        ({"max_memory_bytes": 1000}, BudgetError, "over 1,000"),
        ({"max_drop": "0.01pt", "require_int8": True}, AccuracyGateError, "int8 is required"),
        ({"targets": ("toaster",)}, RecipeError, "unknown target"),
        ({"min_metric": {"r2": 0.5}}, RecipeError, "a classification model has accuracy"),
        ({"key": Path("absent.pem")}, SigningKeyError, "absent.pem"),
        ({"model": Path("absent.onnx")}, InputError, "absent.onnx"),
    ],
)
def test_a_failed_build_leaves_no_file(recipe, change, error, words):
    wanted = recipe(**change)
    with pytest.raises(error, match=words):
        build(wanted)
    assert nothing_written(wanted)


@pytest.mark.parametrize("step", ["load", "search", "describe", "write"])
def test_an_interrupted_build_leaves_no_file(recipe, step):
    wanted = recipe(lock=recipe().output.with_name("edgepack.lock"))

    def interrupt(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(wanted, interrupt)
    assert nothing_written(wanted)


def test_a_write_that_fails_leaves_the_old_bundle(recipe, monkeypatch):
    wanted = recipe()
    wanted.output.write_bytes(b"old")

    def fail(path, *args, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, "write_bundle", fail)
    with pytest.raises(RecipeError, match=r"there is no room to write .*No space") as caught:
        build(wanted)
    assert caught.value.code == "disk-full"
    assert wanted.output.read_bytes() == b"old"
    assert [path.name for path in wanted.output.parent.iterdir()] == [wanted.output.name]


def test_a_check_gives_digest_and_errors_of_a_build_and_no_bundle(recipe, tmp_path):
    lock = tmp_path / "edgepack.lock"
    built = build(recipe(lock=lock))
    before = sorted(tmp_path.iterdir())
    checked = build(recipe(lock=lock, locked=True, output=None))
    assert (checked.path, checked.digest) == (None, built.digest)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(AccuracyGateError, match=r"under 0\.999"):
        build(recipe(output=None, min_metric={"accuracy": 0.999}))


def test_an_output_that_is_there_is_not_replaced_unasked(recipe):
    wanted = recipe(overwrite=False)
    wanted.output.write_bytes(b"old")
    with pytest.raises(RecipeError, match="is there already; give --overwrite") as caught:
        build(wanted)
    assert caught.value.code == "output-exists"
    assert wanted.output.read_bytes() == b"old"


def test_a_key_signs_and_the_identity_stays(recipe, tmp_path):
    lock = tmp_path / "edgepack.lock"
    key = tmp_path / "publisher.pem"
    write_private_key(key, PrivateKey.generate(), b"secret")
    plain = build(recipe(lock=lock))
    assert any("not signed" in text for text in plain.warnings)
    signed = build(recipe(lock=lock, locked=True, key=key, passphrase=b"secret"))
    assert signed.digest == plain.digest
    with BundleFile.open(signed.path) as file:
        assert any(tag.endswith(".sig") for tag in file.tags)


def test_measurements_are_evidence_and_not_identity(recipe, tmp_path):
    wanted = recipe(report_json=tmp_path / "r.json", report_html=tmp_path / "r.html")
    result = build(wanted)
    with BundleFile.open(wanted.output) as file:
        bundle = verify_bundle_file(file, keyring=None)
        layers = open_evidence(bundle, file)
        raw = read_blob(file, layers["report.json"], what="report", max_bytes=2**20)
        description = open_variant(bundle, file, bundle.variants[0]).description
    report = json.loads(raw)
    assert report == json.loads((tmp_path / "r.json").read_text())
    assert report["host"]["cores"] >= 1
    assert report["targets"][0]["candidates"][0]["latency_ms"]["p99_ms"] > 0
    page = (tmp_path / "r.html").read_text()
    assert all(row.name in page for row in result.table)
    assert "src=" not in page
    assert "href=" not in page
    text = description.to_bytes().decode()
    assert str(report["host"]["model"]) not in text
    assert str(tmp_path) not in text


BUILD = """
import sys
from dataclasses import replace
from pathlib import Path
from edgepack_packager import Recipe, build
model, data, output, lock, locked = sys.argv[1:]
print(build(Recipe(model=Path(model), name="digits", version="1.0.0", output=Path(output),
    overwrite=True, data=Path(data), label="label", lock=Path(lock), locked=bool(locked))).digest)
"""


def test_a_locked_build_repeats_the_digest_in_another_process_and_place(recipe, digits, tmp_path):
    lock = tmp_path / "edgepack.lock"
    here = build(recipe(lock=lock))
    folder = tmp_path / "elsewhere"
    (folder / "tmp").mkdir(parents=True)
    environment = {
        **os.environ, "PYTHONHASHSEED": "77", "TMPDIR": str(folder / "tmp"), "TZ": "Asia/Tokyo",
    }  # fmt: skip
    arguments = [digits / "network.skops", digits / "rows.npz", folder / "o.edgepack", lock]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *map(str, arguments), "locked"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == here.digest
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, "seed 0"),
        ({"version": "1.0.1"}, "version 1.0.0"),
        ({"data": "other"}, "data"),
        ({"model": "forest"}, "source"),
        ({"targets": ("rpi5",)}, "made for"),
        ({"security_version": 3}, r"options security_version not given \(now 3\)"),
        ({"max_drop": "2pt"}, "options max_drop"),
        ({"lock": Path("absent.lock")}, "build without locked first"),
    ],
)
def test_a_lock_made_from_anything_else_is_refused(recipe, digits, tmp_path, change, words):
    lock = tmp_path / "edgepack.lock"
    wanted = recipe(lock=lock)
    build(wanted)
    before = wanted.output.read_bytes()
    rows = np.load(digits / "rows.npz")
    np.savez(tmp_path / "other.npz", pixels=rows["pixels"][:-1], label=rows["label"][:-1])
    named = {"other": tmp_path / "other.npz", "forest": digits / "forest.skops"}
    change = {key: named.get(item, item) if isinstance(item, str) else item
              for key, item in change.items()}  # fmt: skip
    with pytest.raises(LockError, match=words):
        build(recipe(**{"lock": lock, "locked": True, **change}))
    assert wanted.output.read_bytes() == before


def test_a_lock_of_other_tools_is_refused(recipe, tmp_path):
    lock = tmp_path / "edgepack.lock"
    build(recipe(lock=lock))
    content = json.loads(lock.read_text())
    content["tools"]["onnx"] = "1.0.0"
    lock.write_text(json.dumps(content))
    with pytest.raises(LockError, match=r"tools onnx 1\.0\.0"):
        build(recipe(lock=lock, locked=True))
    lock.write_text("{}")
    with pytest.raises(LockError, match="wrong fields"):
        build(recipe(lock=lock, locked=True))


def test_the_edges_of_the_previous_bundle_are_inherited(recipe, tmp_path):
    first = build(recipe(seed=1))
    edges = read_reference(first.path)
    later = recipe(seed=2, version="1.1.0", output=tmp_path / "b.edgepack")
    fresh = build(later)
    assert reference_id(read_reference(fresh.path)) != reference_id(edges)
    heir = build(replace(later, previous=first.path))
    assert reference_id(read_reference(heir.path)) == reference_id(edges)


def test_a_previous_that_is_no_bundle_is_refused(recipe, digits):
    with pytest.raises(InputError, match="previous bundle"):
        build(recipe(previous=digits / "rows.npz"))


def test_golden_rows_hold_and_a_wrong_model_does_not(recipe, tmp_path):
    result = build(recipe(optimize="size"))
    with BundleFile.open(result.path) as file:
        unpack(file, tmp_path / "tree")
    (folder,) = [path for path in (tmp_path / "tree").iterdir() if path.is_dir()]
    description = read_description(folder)
    session = open_unpacked(folder, description)
    good = check_golden(session, folder / GOLDEN_PATH, description.golden)
    assert good.ok, good.words
    assert good.rows == 64
    assert 0 < description.golden.atol < 0.5
    assert description.golden.top1_agreement > 0.5

    graph = onnx.load(folder / MODEL_PATH)
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
    onnx.save(graph, folder / MODEL_PATH)
    bad = check_golden(open_unpacked(folder, description), folder / GOLDEN_PATH, description.golden)
    assert not bad.ok


def test_rows_with_gaps_make_the_bundle_count_them(recipe, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(mlp(), folder / "m.onnx")
    x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    np.savez(folder / "full.npz", x=x)
    x[5, 3] = np.nan
    np.savez(folder / "gaps.npz", x=x)
    policies = []
    for name in ("full", "gaps"):
        made = build(recipe(model=folder / "m.onnx", data=folder / f"{name}.npz", label=None))
        policies.append(descriptions(made.path)[0].on_nonfinite)
    assert policies == ["refuse", "count"]


def reshaped_batch(rows):
    """A graph that says it takes any number of rows, with a number baked into a Reshape."""
    shape = onnx.numpy_helper.from_array(np.array([rows, 8], np.int64), "shape")
    return build_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ],
        [value("x", ["n", 8])],
        [value("y", ["n", 3])],
        [weight("w", (8, 3)), shape],
    )


def test_a_batch_baked_into_the_graph_is_found_out(recipe, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(reshaped_batch(1), folder / "m.onnx")
    np.savez(folder / "rows.npz", x=np.random.default_rng(0).standard_normal((60, 8)))
    result = build(recipe(model=folder / "m.onnx", data=folder / "rows.npz", label=None))
    (description,) = descriptions(result.path)
    assert description.inputs[0].shape == [1, 8]
    assert any("packed for one" in text for text in result.warnings)


def test_a_graph_that_takes_exactly_four_rows_is_refused(recipe, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    graph = mlp()
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(graph, folder / "m.onnx")
    np.savez(folder / "rows.npz", x=np.zeros((60, 8)))
    with pytest.raises(ConversionError, match="exactly 4 rows"):
        build(recipe(model=folder / "m.onnx", data=folder / "rows.npz", label=None))
