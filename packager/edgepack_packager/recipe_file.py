"""A recipe read from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_packager.errors import RecipeError
from edgepack_packager.quantities import parse_latency_ms, parse_seconds, parse_size
from edgepack_packager.recipe import Recipe, is_reference

_PATHS = frozenset(
    {"model", "output", "data", "calibration", "evaluation", "reference", "key", "lock"}
    | {"previous", "not_worse_than", "preprocess", "postprocess", "report_json", "report_html"}
)
_WITH_UNITS: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "max_latency": ("max_latency_ms", parse_latency_ms),
    "max_size": ("max_size_bytes", parse_size),
    "max_memory": ("max_memory_bytes", parse_size),
    "time_budget": ("time_budget_s", parse_seconds),
}
"""Keys of a recipe file that are spelt as text with a unit."""


def read_recipe(path: Path, **overrides: Any) -> Recipe:
    """Read a recipe file; ``overrides`` win over it.

    Paths in the file are relative to the file's folder.

    Raises:
        RecipeError: Unreadable, not TOML, an unknown key, or a value of the wrong type.
    """
    values = _read_toml(path)
    unknown = sorted(set(values) - _toml_keys())
    if unknown:
        raise RecipeError(
            f"{path}: unknown key {', '.join(unknown)}; "
            f"known are {', '.join(sorted(_toml_keys()))}",
            code="unknown-key",
        )
    merged = dict(_from_file(key, value, path.parent) for key, value in values.items())
    try:
        return msgspec.convert(merged | overrides, Recipe, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}", code="bad-value") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        raw = read_small(path, LIMITS.config_bytes)
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}", code="no-file") from error
    if len(raw) > LIMITS.config_bytes:
        raise RecipeError(f"{path} has over {LIMITS.config_bytes} bytes", code="too-large")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}", code="bad-toml") from error


def _toml_keys() -> frozenset[str]:
    # a passphrase in a file that is meant to be committed would be a leak
    plain = frozenset(item.name for item in fields(Recipe)) - {"passphrase"}
    return (plain - {field for field, _ in _WITH_UNITS.values()}) | _WITH_UNITS.keys()


def _from_file(key: str, value: Any, folder: Path) -> tuple[str, Any]:
    if key in _PATHS and isinstance(value, str):
        return key, Path(value) if is_reference(Path(value)) else folder / value
    if key == "measured" and isinstance(value, list):
        return key, [folder / str(item) for item in value]
    if key == "inputs" and isinstance(value, dict):
        return key, {name: _input_rule(rule) for name, rule in value.items()}
    if key in _WITH_UNITS:
        name, parse = _WITH_UNITS[key]
        return name, parse(value)
    return key, value


def _input_rule(rule: Any) -> Any:
    # "from" reads best in a file, and is no name in Python
    return (
        {"source" if key == "from" else key: value for key, value in rule.items()}
        if isinstance(rule, dict)
        else rule
    )


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, Path | str):
        return Path(value)
    raise NotImplementedError(f"a recipe holds no {kind}")
