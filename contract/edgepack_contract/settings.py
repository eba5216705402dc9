"""How every process of edgepack reads its configuration: TOML, then environment, then checks.

The shape is a frozen msgspec struct whose nested structs are the TOML tables. An environment
variable ``PREFIX_TABLE_KEY`` overrides ``[table] key``. An unknown key is an error, and so is an
unknown variable of a table, so that a misspelt setting is never silently ignored.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_origin

import msgspec

from edgepack_contract.errors import ConfigError
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_configured

T = TypeVar("T", bound=msgspec.Struct)
_NONE: Mapping[str, str] = MappingProxyType({})
_PLACE = re.compile(r"at `\$\.([\w.]+)")


def load_settings(
    path: Path | None, shape: type[T], *, prefix: str, environ: Mapping[str, str]
) -> T:
    """Read a configuration.

    Args:
        path: A TOML file, or None for defaults and environment only.
        shape: The struct to fill.
        prefix: Such as ``EDGEPACK``; variables that start with it and ``_`` are ours.
        environ: The environment.

    Raises:
        ConfigError: Unreadable, not TOML, an unknown key, a wrong type or a missing value.
    """
    table = read_toml(path) if path is not None else {}
    given: dict[str, str] = {}
    names = _variables(shape, prefix)
    tables = tuple(f"{prefix}_{name}_".upper() for name in _tables(shape))
    for variable, value in environ.items():
        if variable in names:
            _put(table, names[variable], value)
            given[".".join(names[variable])] = variable
        elif variable.startswith(tables):
            raise ConfigError(
                f"{variable} is not a setting. Known variables: {', '.join(sorted(names))}",
                code="bad-config",
            )
    return convert(table, shape, what=str(path) if path else "the configuration", given=given)


def convert(
    table: Mapping[str, Any], shape: type[T], *, what: str, given: Mapping[str, str] = _NONE
) -> T:
    """Check a decoded table against its shape; text is turned into numbers where one is due.

    Args:
        table: What was read.
        shape: The struct to fill.
        what: Where it is from, for messages.
        given: The keys that a variable has set, and its name.

    Raises:
        ConfigError: It does not fit; the message names the key.
    """
    try:
        return msgspec.convert(table, shape, strict=False)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        source = given.get(place[1], what) if place else what
        raise ConfigError(
            f"{source}: {error}{_hint(str(error), shape)}", code="bad-config"
        ) from error


def _hint(words: str, shape: type[msgspec.Struct]) -> str:
    """The keys there are, for who misspelt one."""
    misspelt = "unknown field" in words or "missing required field" in words
    return f". Known keys: {', '.join(sorted(_keys(shape)))}" if misspelt else ""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file within limits.

    Raises:
        ConfigError: Missing, unreadable, too large, or not TOML.
    """
    raw = read_configured(path, LIMITS.config_bytes, code="no-config")
    if len(raw) > LIMITS.config_bytes:
        raise ConfigError(
            f"{path} is larger than {LIMITS.config_bytes} bytes: not a configuration",
            code="bad-config",
        )
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", code="bad-config") from error


def _fields(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(shape)}


def _keys(shape: type[msgspec.Struct], before: str = "") -> list[str]:
    keys = []
    for name, kind in _fields(shape).items():
        nested = _struct(kind)
        keys += _keys(nested, f"{before}{name}.") if nested else [before + name]
    return keys


def _tables(shape: type[msgspec.Struct]) -> list[str]:
    kinds = _fields(shape).items()
    return [name for name, kind in kinds if _struct(kind) or get_origin(kind) is dict]


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _variables(shape: type[msgspec.Struct], prefix: str) -> dict[str, list[str]]:
    paths = [key.split(".") for key in _keys(shape)]
    return {f"{prefix}_{'_'.join(path)}".upper(): path for path in paths}


def _put(table: dict[str, Any], path: list[str], value: str) -> None:
    *tables, key = path
    for name in tables:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            # the file is wrong, which is said when it is checked as a whole
            return
        table = inner
    table[key] = value
