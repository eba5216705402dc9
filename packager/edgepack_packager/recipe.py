"""What to build, in one frozen value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgepack_contract.description import Role, Task
from edgepack_contract.errors import ConfigError
from edgepack_contract.names import check_id, check_version
from edgepack_packager.errors import RecipeError
from edgepack_packager.quantities import Drop

Optimize = Literal["latency", "size", "memory"]
PickleTrust = Literal["no", "sandboxed", "unsandboxed"]

_CODE = re.compile(r"\A[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")
_REGISTERED = "models:"


def code_name(path: Path) -> tuple[str, str] | None:
    """Module and name of ``module:function``; None when ``path`` is a path."""
    text = str(path)
    if _CODE.match(text) is None or path.exists():
        return None
    module, _, name = text.partition(":")
    return module, name


def is_reference(path: Path) -> bool:
    """Whether ``path`` is ``module:function`` or ``models:/…``, and no path at all."""
    return code_name(path) is not None or str(path).startswith(_REGISTERED)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRule:
    """How one input of the model is fed.

    Attributes:
        columns: The columns that stand side by side in it; none means the column of its name.
        role: ``state`` for an input that is carried from step to step of a sequence.
        source: The output that a state is carried from; ``from`` in a recipe file.
    """

    columns: tuple[str, ...] = ()
    role: Role = "data"
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a build.

    Where a path may also be code, it is written as ``module:function``.

    Attributes:
        model: The source model: a file or folder that :mod:`edgepack_packager.sources` reads,
            ``module:function``, or the ``models:/`` URI of a registered one.
        name: The bundle's name, an id.
        version: The bundle's semantic version.
        output: The bundle to write; None checks everything and writes none.
        overwrite: Whether an existing ``output`` may be replaced.
        data: Rows to split by ``seed`` into calibration, evaluation and reference: a file, or
            ``module:function`` that gives batches.
        calibration: Rows to calibrate with, instead of a share of ``data``.
        evaluation: Rows to judge candidates on, instead of a share of ``data``.
        reference: Rows the drift reference is counted from, instead of a share of ``data``.
        label: The column or array that holds the truth.
        time_column: The column with the time of each row: what is judged on comes last.
        sequence_column: The column that names the sequence of each row; a sequence is one unit.
        slices: Columns by whose values figures are also given one by one.
        inputs: How inputs are fed, by name, where names of columns do not say it.
        preprocess: What happens to the rows before the model: an ONNX file, or steps in TOML.
        postprocess: What happens to the model's outputs, likewise.
        targets: Names of device configs; none means the kind of machine that this one is.
        measured: Files that ``edgepack bench --json`` wrote on devices.
        alternatives: Candidates besides the best that a bundle carries for a target that is not
            this machine, for the device to choose from.
        max_drop: The loss allowed against the source model, such as ``1pt`` or ``1%``.
        min_metric: The least value of a metric, such as ``{"accuracy": 0.85}``; needs labels.
        max_metric: The greatest value of an error, such as ``{"rmse": 3.0}``; needs labels.
        not_worse_than: A bundle that the new one must not be worse than on the same rows.
        margin: By how much it may be worse, such as ``0.5pt``.
        metric: ``module:function`` that scores each sample; more is better.
        max_latency_ms: Milliseconds that 95 of 100 single rows may take at most.
        max_size_bytes: Bytes of the model file at most.
        max_memory_bytes: Peak memory in bytes of a process that serves the model.
        optimize: What to minimise among the candidates inside all gates.
        require_int8: Fail when no int8 candidate is proven, instead of shipping fp32.
        time_budget_s: Seconds after which the search takes the best it has.
        jobs: Candidates that are made and judged side by side; None takes the cores there are.
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
        trust_pickle: Whether a pickle, which is code, may be loaded: in a child process without
            network, or without that protection.
    """

    model: Path
    name: str
    version: str
    output: Path | None = None
    overwrite: bool = False
    data: Path | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    reference: Path | None = None
    label: str | None = None
    time_column: str | None = None
    sequence_column: str | None = None
    slices: tuple[str, ...] = ()
    inputs: Mapping[str, InputRule] = field(default_factory=dict)
    preprocess: Path | None = None
    postprocess: Path | None = None
    targets: tuple[str, ...] = ()
    measured: tuple[Path, ...] = ()
    alternatives: int = 2
    max_drop: str = "1pt"
    min_metric: Mapping[str, float] = field(default_factory=dict)
    max_metric: Mapping[str, float] = field(default_factory=dict)
    not_worse_than: Path | None = None
    margin: str = "0.5pt"
    metric: str | None = None
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None
    max_memory_bytes: int | None = None
    optimize: Optimize = "latency"
    require_int8: bool = False
    time_budget_s: float | None = None
    jobs: int | None = None
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
    trust_pickle: PickleTrust = "no"

    def __post_init__(self) -> None:
        _check_names(self)
        _check_limits(self)
        _check_combinations(self)
        _check_inputs(self)

    @property
    def drop(self) -> Drop:
        """``max_drop``, parsed."""
        return Drop.parse(self.max_drop)

    @property
    def asides(self) -> tuple[str, ...]:
        """Columns that are needed besides features and label, each once."""
        return tuple(dict.fromkeys((*self.keys, *self.slices)))

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns with the time and the sequence of each row, as far as they are named."""
        named = (self.time_column, self.sequence_column)
        return tuple(dict.fromkeys(name for name in named if name is not None))


def _check_names(recipe: Recipe) -> None:
    try:
        check_id(recipe.name, what="name")
        check_version(recipe.version)
    except ConfigError as error:
        raise RecipeError(str(error), code=error.code) from error


def _check_limits(recipe: Recipe) -> None:
    Drop.parse(recipe.max_drop)
    Drop.parse(recipe.margin, what="margin")
    limits = (
        recipe.max_latency_ms, recipe.max_size_bytes, recipe.max_memory_bytes,
        recipe.time_budget_s, recipe.jobs,
    )  # fmt: skip
    for value in limits:
        if value is not None and not value > 0:
            raise RecipeError(f"a budget of {value} can never be met", code="bad-budget")
    if min(recipe.security_version, recipe.seed, recipe.alternatives) < 0:
        raise RecipeError(
            "seed, security_version and alternatives must not be negative", code="bad-value"
        )
    if len(set(recipe.targets)) != len(recipe.targets):
        raise RecipeError("a target is named twice", code="repeated-target")


def _check_combinations(recipe: Recipe) -> None:
    if recipe.locked and recipe.lock is None:
        raise RecipeError("locked needs the path of the lock", code="no-lock")
    wanted = sorted({*recipe.min_metric, *recipe.max_metric})
    if wanted and recipe.label is None and recipe.metric is None:
        raise RecipeError(
            f"a limit on {', '.join(wanted)} needs the truth: name the label", code="no-label"
        )
    if recipe.not_worse_than is not None and recipe.label is None and recipe.metric is None:
        raise RecipeError(
            "not_worse_than compares with the truth: name the label, or a metric", code="no-label"
        )
    if recipe.label is not None and recipe.data is None and recipe.evaluation is None:
        raise RecipeError("a label needs data or evaluation rows to read it from", code="no-data")
    parts = (recipe.calibration, recipe.evaluation, recipe.reference)
    if recipe.data is not None and any(part is not None for part in parts):
        raise RecipeError(
            "give either data, which is split, or calibration, evaluation and reference",
            code="data-twice",
        )
    if recipe.metric is not None and code_name(Path(recipe.metric)) is None:
        raise RecipeError(
            f"metric {recipe.metric!r}: write it as module:function", code="bad-metric"
        )


def _check_inputs(recipe: Recipe) -> None:
    for name, rule in recipe.inputs.items():
        if (rule.role == "state") != (rule.source is not None):
            raise RecipeError(
                f"inputs.{name}: an input has a source (from) exactly when its role is state",
                code="bad-input-rule",
            )
        if rule.role == "state" and rule.columns:
            raise RecipeError(
                f"inputs.{name}: a state is carried, it has no columns", code="bad-input-rule"
            )
