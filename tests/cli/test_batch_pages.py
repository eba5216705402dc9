"""docs/ci.md and docs/batch-scoring.md run as they stand; the example for GitHub fits them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from onnx import helper
from world_bundles import tiny_bundle

from edgepack_cli.main import edgepack
from edgepack_contract.hardware import this_machine
from edgepack_packager.targets import target_names

ROOT = Path(__file__).parents[2]
CI = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
BATCH = (ROOT / "docs" / "batch-scoring.md").read_text(encoding="utf-8")
ACTIONS = (ROOT / "examples" / "github-actions" / "edgepack.yml").read_text(encoding="utf-8")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def run(commands, folder):
    return subprocess.run(
        ["bash", "-c", f"set -eu\n{commands}"], cwd=folder, env=os.environ | {"PATH": PATH},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What a repository with a model has: the model, rows, and the page's recipe."""
    folder = tmp_path_factory.mktemp("repository")
    rng = np.random.default_rng(1)
    weights, rows = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(400, 6))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, ["n", 6])], [value("p", 1, ["n", 3])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    rows = rows.astype(np.float32)
    np.savez(folder / "rows.npz", x=rows, label=(rows @ weights).argmax(axis=1))
    (recipe,) = blocks(CI, "toml")
    here = f"generic-{this_machine(onnxruntime=ort.__version__).architecture}"
    (folder / "edgepack.toml").write_text(recipe.replace("generic-amd64", here))
    return folder


def test_the_page_on_ci_runs(repository):
    done = run("\n".join(blocks(CI, "sh")), repository)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not good enough: nothing to ship" in done.stdout
    checked = json.loads((repository / "check.json").read_text())
    again = json.loads((repository / "again.json").read_text())
    assert {"digest", "table", "warnings", "report"} <= checked.keys()
    assert checked["path"] is None
    first = run("edgepack inspect sample.edgepack --json", repository)
    assert again["digest"] == json.loads(first.stdout)["digest"]
    assert json.loads((repository / "bench.json").read_text())["schema"] == "edgepack-bench/1"


def test_every_exit_code_of_the_page_is_one():
    from edgepack_cli.errors import Exit

    told = {int(code) for code in re.findall(r"^\| (\d+) \|", CI, re.MULTILINE)}
    assert told <= set(Exit)
    assert {0, 3, 4, 5, 6, 7} <= told


def test_the_example_for_github_says_that_it_was_not_run_there():
    assert "not run it on GitHub" in " ".join(ACTIONS.replace("#", "").split())
    jobs = yaml.safe_load(ACTIONS)["jobs"]
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert sum("edgepack " in step for step in steps) == 4


def test_commands_and_options_of_the_example_exist():
    for words in re.findall(r"edgepack ([a-z]+(?: push)?) ([^\n|]*)", ACTIONS):
        name, rest = words
        command = edgepack
        for word in name.split():
            command = (
                command.get_command(None, word) if command is edgepack else command.commands[word]
            )
        known = {option for parameter in command.params for option in parameter.opts}
        assert {
            option for option in re.findall(r"--?[a-z][a-z-]*", rest) if option in rest.split()
        } <= known


@pytest.fixture
def scores(tmp_path):
    tiny_bundle(tmp_path / "sample.edgepack", "1.0.0")
    (tmp_path / "june.csv").write_text("id,a,b,c,d\n1,1,2,3,4\n2,0,0,0,0\n")
    return tmp_path


def test_the_page_on_batches_runs(scores):
    done = run("\n".join(blocks(BATCH, "sh")), scores)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (scores / "scores.parquet").exists()
    assert (scores / "scores.parquet.meta.json").exists()
    assert len(list((scores / "scores").glob("20*.parquet"))) == 1


def test_the_dag_is_python_and_its_options_exist():
    (dag,) = blocks(BATCH, "python")
    compile(dag, "dag", "exec")
    (cron,) = blocks(BATCH, "text")
    known = {
        o for parameter in edgepack.get_command(None, "predict").params for o in parameter.opts
    }
    for text in (dag, cron):
        assert set(re.findall(r"(?<=\s)--(?!nonblock)[a-z-]+", text)) <= known


def test_the_recipe_of_the_page_names_its_targets():
    (recipe,) = blocks(CI, "toml")
    assert set(tomllib.loads(recipe)["targets"]) <= set(target_names())
