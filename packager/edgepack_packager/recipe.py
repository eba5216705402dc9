"""What to build, in one frozen value, and how it is read from a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgepack_contract.description import Task
from edgepack_contract.errors import ConfigError
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import check_id, check_version
from edgepack_packager.errors import RecipeError

Optimize = Literal["latency", "size", "memory"]
METRICS_BY_TASK: Mapping[Task, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("r2",),
    "other": (),
}
"""The metrics that may have a minimum; for each of them more is better."""

_DROP = re.compile(r"\A(\d+(?:\.\d+)?)(pt|%)\Z")
_SIZE = re.compile(r"\A(\d+(?:\.\d+)?)\s*(B|kB|KiB|MB|MiB|GB|GiB)?\Z")
_LATENCY = re.compile(r"\A(\d+(?:\.\d+)?)\s*(us|ms|s)?\Z")
_SIZE_UNITS = {
    "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
}  # fmt: skip
_LATENCY_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True, slots=True)
class Drop:
    """The loss that a candidate may have against the source model.

    Attributes:
        value: A share: 0.01 for one point or one per cent.
        relative: Whether it is relative to the source model's own figure (``1%``), or in points
            of the figure itself (``1pt``).
    """

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Drop:
        """Read ``0.5pt`` or ``1%``.

        Raises:
            RecipeError: Neither of the two forms, or not between 0 and 100.
        """
        found = _DROP.match(text.strip())
        if found is None or not 0 < float(found[1]) <= 100:
            raise RecipeError(
                f"max_drop {text!r}: write points as 0.5pt or a relative loss as 1%",
                code="bad-drop",
            )
        return cls(value=float(found[1]) / 100, relative=found[2] == "%")

    def __str__(self) -> str:
        return f"{self.value * 100:g}{'%' if self.relative else 'pt'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a build.

    Attributes:
        model: The source model: ``.onnx`` or ``.skops``.
        name: The bundle's name, an id.
        version: The bundle's semantic version.
        output: The bundle to write.
        data: Rows to split by ``seed`` into calibration, evaluation and reference.
        calibration: Rows to calibrate with, instead of a share of ``data``.
        evaluation: Rows to judge candidates on, instead of a share of ``data``.
        reference: Rows the drift reference is counted from, instead of a share of ``data``.
        label: The column or array that holds the truth.
        targets: Names of device configs; none means a generic machine like this one.
        max_drop: The loss allowed against the source model, such as ``1pt`` or ``1%``.
        min_metric: The least value of a metric, such as ``{"accuracy": 0.85}``; needs labels.
        max_latency_ms: Milliseconds that 95 of 100 single rows may take at most.
        max_size_bytes: Bytes of the model file at most.
        max_memory_bytes: Peak memory in bytes of a process that serves the model.
        optimize: What to minimise among the candidates inside all gates.
        require_int8: Fail when no int8 candidate is proven, instead of shipping fp32.
        seed: Decides the split and every other random choice.
        key: The publisher's private key; without it the bundle is not signed.
        passphrase: The passphrase of ``key``.
        security_version: The publisher's floor against downgrades.
        lock: Where the decisions are written to, or with ``locked`` read from.
        locked: Repeat the lock's decisions to the same digest instead of searching.
        previous: A bundle whose reference edges are inherited.
        report_json: Where the report goes as JSON, besides the bundle.
        report_html: Where the report goes as HTML, besides the bundle.
        task: Overrides the task that the model's outputs suggest.
        trusted_types: Types that a ``.skops`` file may load besides the known safe ones.
    """

    model: Path
    name: str
    version: str
    output: Path
    data: Path | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    reference: Path | None = None
    label: str | None = None
    targets: tuple[str, ...] = ()
    max_drop: str = "1pt"
    min_metric: Mapping[str, float] = field(default_factory=dict)
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None
    max_memory_bytes: int | None = None
    optimize: Optimize = "latency"
    require_int8: bool = False
    seed: int = 0
    key: Path | None = None
    passphrase: bytes | None = None
    security_version: int = 0
    lock: Path | None = None
    locked: bool = False
    previous: Path | None = None
    report_json: Path | None = None
    report_html: Path | None = None
    task: Task | None = None
    trusted_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_names(self)
        _check_limits(self)
        _check_combinations(self)

    @property
    def drop(self) -> Drop:
        """``max_drop``, parsed."""
        return Drop.parse(self.max_drop)

    @classmethod
    def from_toml(cls, path: Path, **overrides: Any) -> Recipe:
        """Read a recipe file; ``overrides`` win over it.

        Paths in the file are relative to the file's folder.

        Raises:
            RecipeError: Unreadable, not TOML, an unknown key, or a value of the wrong type.
        """
        values = _read_toml(path)
        unknown = sorted(set(values) - _toml_keys())
        if unknown:
            raise RecipeError(
                f"{path}: unknown key {', '.join(unknown)}; known are "
                f"{', '.join(sorted(_toml_keys()))}",
                code="unknown-key",
            )
        merged = dict(_from_file(key, value, path.parent) for key, value in values.items())
        try:
            return msgspec.convert(merged | overrides, cls, dec_hook=_decode_path)
        except msgspec.ValidationError as error:
            raise RecipeError(f"{path}: {error}", code="bad-value") from error


def parse_size(text: str | int) -> int:
    """Bytes of ``2MiB``, ``500 kB`` or a plain number.

    Raises:
        RecipeError: Not a positive size.
    """
    found = _SIZE.match(str(text).strip())
    size = int(float(found[1]) * _SIZE_UNITS[found[2] or "B"]) if found else 0
    if size < 1:
        raise RecipeError(f"{text!r} is not a size such as 2MiB or 500kB", code="bad-size")
    return size


def parse_latency_ms(text: str | float) -> float:
    """Milliseconds of ``5ms``, ``800us``, ``0.1s`` or a plain number of milliseconds.

    Raises:
        RecipeError: Not a positive time.
    """
    found = _LATENCY.match(str(text).strip())
    latency = float(found[1]) * _LATENCY_UNITS[found[2] or "ms"] if found else 0.0
    if latency <= 0:
        raise RecipeError(f"{text!r} is not a time such as 5ms or 800us", code="bad-latency")
    return latency


def _check_names(recipe: Recipe) -> None:
    try:
        check_id(recipe.name, what="name")
        check_version(recipe.version)
    except ConfigError as error:
        raise RecipeError(str(error), code=error.code) from error


def _check_limits(recipe: Recipe) -> None:
    Drop.parse(recipe.max_drop)
    limits = (recipe.max_latency_ms, recipe.max_size_bytes, recipe.max_memory_bytes)
    for value in limits:
        if value is not None and not value > 0:
            raise RecipeError(f"a budget of {value} can never be met", code="bad-budget")
    if recipe.security_version < 0 or recipe.seed < 0:
        raise RecipeError("seed and security_version must not be negative", code="bad-value")
    if len(set(recipe.targets)) != len(recipe.targets):
        raise RecipeError("a target is named twice", code="repeated-target")


def _check_combinations(recipe: Recipe) -> None:
    if recipe.locked and recipe.lock is None:
        raise RecipeError("locked needs the path of the lock", code="no-lock")
    if recipe.min_metric and recipe.label is None:
        raise RecipeError(
            f"min_metric {', '.join(sorted(recipe.min_metric))} needs the truth: name the label",
            code="no-label",
        )
    if recipe.label is not None and recipe.data is None and recipe.evaluation is None:
        raise RecipeError("a label needs data or evaluation rows to read it from", code="no-data")
    parts = (recipe.calibration, recipe.evaluation, recipe.reference)
    if recipe.data is not None and any(part is not None for part in parts):
        raise RecipeError(
            "give either data, which is split, or calibration, evaluation and reference",
            code="data-twice",
        )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(LIMITS.config_bytes + 1)
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}", code="no-file") from error
    if len(raw) > LIMITS.config_bytes:
        raise RecipeError(f"{path} has over {LIMITS.config_bytes} bytes", code="too-large")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}", code="bad-toml") from error


_PATHS = frozenset(
    {"model", "output", "data", "calibration", "evaluation", "reference"}
    | {"key", "lock", "previous", "report_json", "report_html"}
)
_WITH_UNITS: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "max_latency": ("max_latency_ms", parse_latency_ms),
    "max_size": ("max_size_bytes", parse_size),
    "max_memory": ("max_memory_bytes", parse_size),
}
"""Keys of a recipe file that are spelt as text with a unit."""


def _toml_keys() -> frozenset[str]:
    # a passphrase in a file that is meant to be committed would be a leak
    plain = frozenset(item.name for item in fields(Recipe)) - {"passphrase"}
    return (plain - {field for field, _ in _WITH_UNITS.values()}) | _WITH_UNITS.keys()


def _from_file(key: str, value: Any, folder: Path) -> tuple[str, Any]:
    if key in _PATHS and isinstance(value, str):
        return key, folder / value
    if key in _WITH_UNITS:
        name, parse = _WITH_UNITS[key]
        return name, parse(value)
    return key, value


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, Path | str):
        return Path(value)
    raise NotImplementedError(f"a recipe holds no {kind}")
