"""Recipes: what is read, and what is refused with which words."""

from pathlib import Path

import pytest

from edgepack_packager import Recipe, RecipeError, read_recipe
from edgepack_packager.quantities import Drop, parse_latency_ms, parse_size

BASE = {"model": Path("m.onnx"), "name": "m", "version": "1.0.0", "output": Path("m.edgepack")}


def test_a_recipe_file_is_read_relative_to_its_folder(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'model = "m.skops"\nname = "m"\nversion = "1.2.0"\noutput = "m.edgepack"\n'
        'data = "rows.csv"\nlabel = "y"\ntargets = ["rpi5", "x86-64-v3"]\nmax_drop = "0.5pt"\n'
        'max_size = "2MiB"\nmax_latency = "800us"\nmin_metric = { accuracy = 0.85 }\n'
    )
    recipe = read_recipe(path, seed=3)
    assert recipe.model == tmp_path / "m.skops"
    assert recipe.data == tmp_path / "rows.csv"
    assert recipe.targets == ("rpi5", "x86-64-v3")
    assert recipe.max_size_bytes == 2 * 1024**2
    assert recipe.max_latency_ms == pytest.approx(0.8)
    assert recipe.min_metric == {"accuracy": 0.85}
    assert recipe.drop == Drop(0.005, relative=False)
    assert recipe.seed == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('modle = "m.onnx"', "unknown-key"),
        ('passphrase = "secret"', "unknown-key"),
        ("max_size_bytes = 5", "unknown-key"),
        ('seed = "one"', "bad-value"),
        ('optimize = "speed"', "bad-value"),
        ('max_size = "huge"', "bad-size"),
        ("= 3", "bad-toml"),
    ],
)
def test_a_bad_recipe_file_is_refused(tmp_path, text, code):
    path = tmp_path / "recipe.toml"
    path.write_text(f'model = "m"\nname = "m"\nversion = "1.0.0"\noutput = "o"\n{text}\n')
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "Not An Id"}, "bad-id"),
        ({"version": "one"}, "bad-version"),
        ({"max_drop": "1"}, "bad-drop"),
        ({"max_drop": "0pt"}, "bad-drop"),
        ({"min_metric": {"accuracy": 0.9}}, "no-label"),
        ({"label": "y"}, "no-data"),
        ({"data": Path("d"), "evaluation": Path("e")}, "data-twice"),
        ({"locked": True}, "no-lock"),
        ({"max_size_bytes": 0}, "bad-budget"),
        ({"max_latency_ms": float("nan")}, "bad-budget"),
        ({"targets": ("rpi5", "rpi5")}, "repeated-target"),
        ({"seed": -1}, "bad-value"),
    ],
)
def test_a_contradiction_is_refused(change, code):
    with pytest.raises(RecipeError) as caught:
        Recipe(**BASE | change)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "size"), [("2MiB", 2097152), ("500 kB", 500_000), (77, 77), ("1.5GB", 1_500_000_000)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1MB", "2 XB", "0", "MiB"])
def test_bad_sizes(text):
    with pytest.raises(RecipeError):
        parse_size(text)


@pytest.mark.parametrize(("text", "ms"), [("5ms", 5), ("800us", 0.8), ("0.1s", 100), (3, 3)])
def test_latencies(text, ms):
    assert parse_latency_ms(text) == pytest.approx(ms)
