"""How to build the same again: a command line and a recipe, without this machine's folders."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from edgepack_packager.recipe import InputRule, Recipe, is_reference
from edgepack_packager.report.schema import Repeat

_NOT_REPEATED = frozenset(
    {"output", "overwrite", "passphrase", "key", "report_json", "report_html"}
)
"""Where things go and who signs them is decided anew by whoever repeats a build."""

_UNITS = {
    "max_latency_ms": ("max_latency", "ms"),
    "max_size_bytes": ("max_size", "B"),
    "max_memory_bytes": ("max_memory", "B"),
    "time_budget_s": ("time_budget", "s"),
}
_OPTIONS = {
    "evaluation": "eval",
    "targets": "target",
    "slices": "slice",
    "trusted_types": "trust-type",
}
_NO_OPTION = frozenset({"model", "inputs", "task"})


def repeat_of(recipe: Recipe) -> Repeat:
    """Everything of a recipe that decides the bundle, with the names of files instead of paths."""
    given = dict(_given(recipe))
    return Repeat(command=_command(given), recipe=_toml(given))


def _given(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """The values that are not the default, in the order of the recipe's fields."""
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        if item.name not in _NOT_REPEATED and value != _default(item):
            yield item.name, _without_folder(value)


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _without_folder(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value) if is_reference(value) else value.name
    if isinstance(value, tuple):
        return [_without_folder(item) for item in value]
    return value


def _command(given: dict[str, Any]) -> str:
    if any(name in given for name in _NO_OPTION - {"model"}):
        return "edgepack build --recipe recipe.toml"
    words = ["edgepack", "build", given["model"]]
    for name, value in given.items():
        if name not in _NO_OPTION:
            words += _option(name, value)
    if "lock" in given and "locked" not in given:
        words.append("--locked")
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    plain, unit = _UNITS.get(name, (name, ""))
    flag = f"--{_OPTIONS.get(plain, plain).replace('_', '-')}"
    if value is True:
        return [flag]
    if isinstance(value, dict):
        return [word for key in value for word in (flag, f"{key}={_number(value[key])}")]
    if isinstance(value, list):
        return [word for item in value for word in (flag, str(item))]
    if flag == "--trust-pickle":
        return [f"{flag}={value}"]
    return [flag, _number(value) + unit if unit else str(value)]


def _toml(given: dict[str, Any]) -> str:
    """A recipe file; tables come last, as TOML wants them."""
    plain = {name: value for name, value in given.items() if not isinstance(value, dict)}
    lines = [_entry(name, value) for name, value in plain.items()]
    for name, table in given.items():
        if isinstance(table, dict):
            lines += [f"{name}.{_value(key)} = {_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any) -> str:
    plain, unit = _UNITS.get(name, (name, ""))
    return f"{plain} = {_value(_number(value) + unit if unit else value)}"


def _value(value: Any) -> str:
    """A value in TOML, whose strings, numbers and arrays are written as JSON writes them."""
    if isinstance(value, InputRule):
        parts = {"columns": list(value.columns), "role": value.role, "from": value.source}
        told = {name: part for name, part in parts.items() if part and part != "data"}
        return "{" + ", ".join(f"{name} = {_value(part)}" for name, part in told.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """A number without an exponent, which neither an option nor a unit takes."""
    return f"{value:.9f}".rstrip("0").rstrip(".")
