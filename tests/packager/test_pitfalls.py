"""Every trap on the page has a test, which is there; what no other place tests is tested here."""

import re
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.packager.models import mlp, rows

from edgepack_packager import ConversionError, Recipe, build
from edgepack_packager.graphs import cleaning
from edgepack_packager.graphs.passes import run_passes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pitfalls.md").read_text()
TESTS = {
    name
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
}


def table():
    return [line for line in PAGE.splitlines() if line.startswith("| ")][1:]


def test_the_page_has_all_of_them_and_stays_short():
    assert len(table()) == 24
    assert len(PAGE.splitlines()) < 60


@pytest.mark.parametrize("line", table(), ids=lambda line: line[2:40])
def test_every_trap_has_a_test(line):
    named = re.findall(r"`(test_\w+)`", line)
    assert named
    assert set(named) <= TESTS


def test_the_packager_names_what_the_quantizer_does_not():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names = {re.split(r"[<>=!~ ;\[]", text)[0] for text in extras["packager"]}
    assert {"sympy", "onnx-ir"} <= names


def test_a_build_for_a_release_that_is_too_old_is_refused(tmp_path):
    config = (ROOT / "device-configs" / "rpi4.toml").read_text().replace('"rpi4"', '"old"')
    (tmp_path / "old.toml").write_text(config.replace('"1.31.1"', '"1.9.0"'))
    onnx.save(mlp(), tmp_path / "m.onnx")
    with pytest.raises(ConversionError, match="target old cannot load") as caught:
        build(
            Recipe(
                model=tmp_path / "m.onnx", name="m", version="1.0.0",
                targets=(str(tmp_path / "old.toml"),),
            )
        )  # fmt: skip
    assert caught.value.code == "too-new-for-target"


def test_a_pass_that_changes_the_answers_ends_the_build(tmp_path, monkeypatch):
    graph = mlp()
    original = cleaning.open_original(graph, tmp_path / "original")

    def spoiled(model, passes):
        made, names = run_passes(model, passes)
        weight = np.frombuffer(made.graph.initializer[0].raw_data, np.float32) * 1.01
        made.graph.initializer[0].raw_data = weight.astype(np.float32).tobytes()
        return made, names

    monkeypatch.setattr(cleaning, "run_passes", spoiled)
    with pytest.raises(ConversionError, match="other answers") as caught:
        cleaning.clean(graph, original, {"x": rows()}, tmp_path)
    assert caught.value.code == "not-faithful"
