"""Describe a chosen candidate: golden rows, drift reference, and ``edgepack.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from edgepack_contract.limits import LIMITS
from edgepack_contract.reference import Reference, parse_reference
from edgepack_contract.statistics import build_reference
from edgepack_packager.data.rows import Array
from edgepack_packager.errors import InputError
from edgepack_packager.golden import make_golden
from edgepack_packager.graphs.clean import operators, opsets
from edgepack_packager.graphs.running import model_files, open_folder, run_rows
from edgepack_packager.lock import tool_versions
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.recipe import Recipe
from edgepack_packager.subject import Subject
from edgepack_packager.targets import DeviceConfig, jobs_here
from edgepack_runtime.inference.golden import golden_bytes

MIN_RUNTIME = "1.31.0"
"""Older releases hold the interpreter's lock while a session loads, and serving stalls with it."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A chosen candidate.

    Attributes:
        variant: The name that it gets in the bundle.
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

    variant: str
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
    rows, golden = make_golden(
        subject,
        chosen.folder,
        chosen.margins,
        fp32=None if chosen.plan.precision == "fp32" else chosen.fp32,
        seed=recipe.seed,
    )
    description = _description(recipe, subject, chosen, golden)
    files: dict[str, Content] = {**model_files(chosen.folder), GOLDEN_PATH: golden_bytes(rows)}
    if subject.reference is not None:
        # dynamic int8 scales by what else is in the batch, and a device serves row by row
        session = open_folder(chosen.folder)
        jobs = jobs_here(recipe.jobs)
        outputs = run_rows(session, subject.reference, chunk=1, threads=jobs)
        # rows of a sequence, or of time, follow each other: their counts vary by more than chance
        states = any(spec.role == "state" for spec in subject.inputs)
        ordered = states or recipe.time_column is not None
        reference = build_reference(
            description, subject.reference, outputs, ordered=ordered, inherited=old
        )
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
        variant=chosen.variant,
        security_version=recipe.security_version,
        task=subject.decisions.task,
        inputs=subject.inputs,
        outputs=list(subject.decisions.outputs),
        dimensions=subject.dimensions,
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
