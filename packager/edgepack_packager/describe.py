"""Describe a chosen candidate: golden rows, drift reference, and ``edgepack.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgepack_contract.bundle import BundleFile, open_variant, read_blob, verify_bundle_file
from edgepack_contract.description import (
    GOLDEN_PATH,
    REFERENCE_PATH,
    Budgets,
    DeclaredGate,
    Description,
    Golden,
    Metric,
    Provenance,
    SessionOptions,
)
from edgepack_contract.errors import BundleError
from edgepack_contract.layout import Content, VariantContent
from edgepack_contract.limits import LIMITS, MIB
from edgepack_contract.reference import Reference, parse_reference
from edgepack_contract.statistics import build_reference
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import InputError
from edgepack_packager.graphs.clean import operators, opsets
from edgepack_packager.graphs.running import model_files, open_folder, run_rows, take_rows
from edgepack_packager.lock import tool_versions
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.recipe import Recipe
from edgepack_packager.subject import Subject, synthetic_rows
from edgepack_packager.targets import DeviceConfig
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes
from edgepack_runtime.inference.golden import run_rows as run_golden_rows
from edgepack_runtime.inference.session import Optimisation

MIN_RUNTIME = "1.31.0"
"""Older releases hold the interpreter's lock while a session loads, and serving stalls with it."""

GOLDEN_ROWS = 64
GOLDEN_CLOSE_ROWS = 16
GOLDEN_BYTES = 4 * MIB

FLOOR = 1e-5
"""Sums of floats in another order differ by about this share."""

_OTHER_WAYS: tuple[tuple[Optimisation, int], ...] = (("off", 1), ("basic", 1), ("all", 2))
"""Optimisation levels and threads that stand for other versions and processors."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A chosen candidate.

    Attributes:
        target: For which hardware.
        plan: What was decided.
        model: Its graph.
        folder: Where its files are.
        fp32: Where the files in float are.
        margins: By how much the best class leads in each evaluation row, in float.
        budgets: What the device may be asked for at most.
        gates: What the gates said.
        metrics: Its figures.
    """

    target: DeviceConfig
    plan: Plan
    model: onnx.ModelProto
    folder: Path
    fp32: Path
    margins: Array | None
    budgets: Budgets
    gates: list[DeclaredGate]
    metrics: list[Metric]


def describe(
    recipe: Recipe, subject: Subject, chosen: Chosen, *, old: Reference | None
) -> VariantContent:
    """Everything a variant consists of.

    Args:
        recipe: What was asked for.
        subject: What the candidate was made of.
        chosen: The candidate.
        old: The reference whose edges are inherited.
    """
    rows, golden = _golden(recipe, subject, chosen)
    description = _description(recipe, subject, chosen, golden)
    files: dict[str, Content] = {**model_files(chosen.folder), GOLDEN_PATH: golden_bytes(rows)}
    if subject.reference is not None:
        # dynamic int8 scales by what else is in the batch, and a device serves row by row
        outputs = run_rows(open_folder(chosen.folder), subject.reference, chunk=1)
        reference = build_reference(description, subject.reference, outputs, inherited=old)
        files[REFERENCE_PATH] = reference.to_bytes()
    return VariantContent(description=description, files=files)


def previous_reference(path: Path, variant: str) -> Reference | None:
    """The reference of an older bundle: of the same variant, else of its first.

    Raises:
        InputError: It is not an intact bundle.
    """
    try:
        with BundleFile.open(path) as file:
            bundle = verify_bundle_file(file, keyring=None)
            named = [item for item in bundle.variants if item.name == variant]
            found = open_variant(bundle, file, (named or list(bundle.variants))[0])
            layer = found.layers.get(REFERENCE_PATH)
            if layer is None:
                return None
            raw = read_blob(file, layer, what=REFERENCE_PATH, max_bytes=LIMITS.reference_bytes)
            return parse_reference(raw)
    except (BundleError, OSError) as error:
        raise InputError(f"previous bundle {path}: {error}", code="bad-previous") from error


def _description(recipe: Recipe, subject: Subject, chosen: Chosen, golden: Golden) -> Description:
    target = chosen.target
    return Description(
        name=recipe.name,
        version=recipe.version,
        variant=target.name,
        security_version=recipe.security_version,
        task=subject.decisions.task,
        inputs=subject.inputs,
        outputs=list(subject.decisions.outputs),
        precision=chosen.plan.precision,
        quantization=chosen.plan.quantization,
        ir_version=chosen.model.ir_version,
        opsets=opsets(chosen.model),
        operators=operators(chosen.model),
        min_runtime=MIN_RUNTIME,
        platform=target.platform,
        features=target.features,
        session=SessionOptions(intra_op_threads=target.threads),
        budgets=chosen.budgets,
        gates=chosen.gates,
        metrics=chosen.metrics,
        golden=golden,
        provenance=Provenance(
            source_digest=subject.source.digest,
            framework=subject.source.framework,
            data=subject.data,
            tools={**tool_versions(), **subject.source.tools},
            passes=[*subject.passes, *chosen.plan.passes],
        ),
        on_nonfinite="count" if subject.missing else "refuse",
    )


def _golden(recipe: Recipe, subject: Subject, chosen: Chosen) -> tuple[GoldenRows, Golden]:
    inputs = _golden_inputs(recipe, subject, chosen.margins)
    n = len(next(iter(inputs.values())))
    expected = run_golden_rows(open_folder(chosen.folder), inputs, n)
    others = []
    for level, threads in _OTHER_WAYS:
        options = SessionOptions(intra_op_threads=threads, inter_op_threads=1)
        session = open_folder(chosen.folder, options=options, optimisation=level)
        others.append(run_golden_rows(session, inputs, n))
    spread = max(_furthest(expected, other) for other in others)
    step = 0.0
    if chosen.plan.precision != "fp32":
        # another processor may round an int8 sum to the next step, which is an error of this size
        step = _furthest(expected, run_golden_rows(open_folder(chosen.fp32), inputs, n))
    atol = _round_up(max(4 * spread, step, FLOOR * max(1.0, _largest(expected))))
    golden = Golden(
        rows=n,
        atol=atol,
        rtol=FLOOR,
        top1_agreement=_agreement_floor(subject, expected, others, atol),
        derived=(
            f"atol covers 4 times the spread over optimisation levels and threads "
            f"({_round_up(spread):g}), the distance from fp32 ({_round_up(step):g}) and rounding; "
            "top-1 allows for the rows whose margin is under twice atol"
        ),
    )
    return GoldenRows(inputs=inputs, outputs=expected), golden


def _golden_inputs(recipe: Recipe, subject: Subject, margins: Array | None) -> Feeds:
    """Rows spread over the evaluation rows, some of them hard to decide."""
    feeds = subject.exam.feeds if subject.exam else subject.calibration or subject.reference
    if feeds is None:
        feeds = synthetic_rows(subject.inputs, GOLDEN_ROWS, seed=recipe.seed)
    n = len(next(iter(feeds.values())))
    size = sum(array.nbytes for array in feeds.values()) / n
    count = min(n, GOLDEN_ROWS, max(1, int(GOLDEN_BYTES / max(size, 1))))
    hardest = [] if margins is None else [int(row) for row in np.argsort(margins, kind="stable")]
    close = hardest[: min(GOLDEN_CLOSE_ROWS, count // 2)]
    rest = [row for row in range(n) if row not in set(close)]
    wanted = count - len(close)
    spread = [rest[place * len(rest) // wanted] for place in range(wanted)] if wanted else []
    return {
        name: np.ascontiguousarray(array)
        for name, array in take_rows(feeds, sorted({*close, *spread})).items()
    }


def _agreement_floor(subject: Subject, expected: Feeds, others: list[Feeds], atol: float) -> float:
    """The share of decisions that must agree: those that rounding cannot turn."""
    answers = [subject.decisions.answers(outputs) for outputs in (expected, *others)]
    if subject.decisions.task != "classification":
        return 0.0
    n = len(answers[0])
    seen = min(float(np.mean(answers[0] == other)) for other in answers[1:])
    margins = subject.decisions.margins(expected)
    firm = n if margins is None else int(np.count_nonzero(margins > 2 * atol))
    return math.floor(min(seen, firm / n) * 1000) / 1000


def _furthest(one: Feeds, two: Feeds) -> float:
    """The largest difference of two floats in the same place."""
    gaps = [
        float(np.max(np.abs(one[name].astype(np.float64) - two[name]), initial=0.0))
        for name in one
        if one[name].dtype.kind == "f"
    ]
    finite = [gap for gap in gaps if math.isfinite(gap)]
    return max(finite, default=0.0)


def _largest(outputs: Feeds) -> float:
    floats = [_finite(values) for values in outputs.values() if values.dtype.kind == "f"]
    return max((float(np.max(np.abs(values), initial=0.0)) for values in floats), default=0.0)


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _round_up(value: float) -> float:
    """To two significant digits, upwards: a tolerance that is readable and repeats."""
    if value <= 0:
        return 0.0
    exponent = math.floor(math.log10(value)) - 1
    return float(f"{math.ceil(value / 10**exponent)}e{exponent}")
