"""How to build again: what is said can be run, and gives the same recipe; no folder is told."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import click
import pytest

from edgepack_cli.commands.build import _given, command
from edgepack_packager import InputRule, Recipe, read_recipe
from edgepack_packager.report.repeat import repeat_of

HOME = Path("/home/somebody/secret place")


def recipe(**changes):
    values = {"model": HOME / "a model.onnx", "name": "digits", "version": "1.0.0"}
    return Recipe(**{**values, **changes})


FULL = recipe(
    data=HOME / "rows.csv", label="is it?", slices=("season", "a b"), targets=("rpi5", "x86-64-v3"),
    max_drop="0.5pt", min_metric={"accuracy": 0.85}, max_metric={"log-loss": 3.0},
    max_latency_ms=0.05, max_size_bytes=2 << 20, max_memory_bytes=90_000_000, time_budget_s=60.0,
    not_worse_than=HOME / "old.edgepack", metric="mine:score", optimize="size", require_int8=True,
    jobs=2, seed=7, trusted_types=("a.B",), trust_pickle="sandboxed", alternatives=3,
    measured=(HOME / "board.json",), key=HOME / "publisher.key", passphrase=b"hush",
    output=HOME / "out.edgepack", overwrite=True, report_html=HOME / "r.html",
)  # fmt: skip


def bare(given):
    """The recipe as it stands beside its files, without what is decided anew."""
    anew = {"key": None, "passphrase": None, "output": None, "overwrite": False,
            "report_html": None}  # fmt: skip
    paths = {
        item.name: Path(value.name)
        for item in fields(given)
        if isinstance(value := getattr(given, item.name), Path)
    }
    return replace(
        given, **{**paths, **anew, "measured": tuple(Path(p.name) for p in given.measured)}
    )


def test_the_command_is_understood_and_asks_for_the_same(tmp_path, monkeypatch):
    for name in ("a model.onnx", "rows.csv", "old.edgepack", "board.json"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(repeat_of(FULL).command)
    assert words[:2] == ["edgepack", "build"]
    context = command.make_context("build", words[2:])
    aside = ("recipe_file", "check", "as_json")
    options = {name: value for name, value in context.params.items() if name not in aside}
    with context:
        assert Recipe(**_given(click.get_current_context(), options)) == bare(FULL)


def test_the_recipe_file_says_the_same(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(repeat_of(FULL).recipe)
    again = read_recipe(path)
    assert bare(again) == bare(FULL)


def test_neither_tells_folders_or_secrets():
    told = f"{repeat_of(FULL)}"
    for word in ("/home", "somebody", "secret place", "hush", "publisher.key"):
        assert word not in told


def test_rules_of_inputs_need_the_file(tmp_path):
    given = recipe(
        inputs={
            "x y": InputRule(columns=("a", "b")),
            "state": InputRule(role="state", source="next"),
        }
    )
    found = repeat_of(given)
    assert found.command == "edgepack build --recipe recipe.toml"
    path = tmp_path / "recipe.toml"
    path.write_text(found.recipe)
    assert read_recipe(path).inputs == given.inputs


def test_with_a_lock_it_is_repeated_to_the_same_digest():
    words = shlex.split(repeat_of(recipe(lock=HOME / "edgepack.lock")).command)
    assert words[-3:] == ["--lock", "edgepack.lock", "--locked"]


@pytest.mark.parametrize("model", ["mine:make", "models:/churn/3"])
def test_what_is_no_path_stays_as_it_is(model):
    assert shlex.split(repeat_of(recipe(model=Path(model))).command)[2] == model
