"""The variants of a bundle: for each target the best candidate, and alternatives after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edgepack_contract.description import DESCRIPTION_PATH, Budgets, FileEntry
from edgepack_contract.digest import sha256_digest
from edgepack_contract.layout import VariantContent
from edgepack_packager.describe import Chosen, describe, previous_reference
from edgepack_packager.errors import ConversionError
from edgepack_packager.lock import LockedTarget, LockedVariant
from edgepack_packager.recipe import Recipe
from edgepack_packager.search.judging import budgets_for, declared_gates
from edgepack_packager.search.trials import Outcome, Trial, variant_names
from edgepack_packager.subject import Subject
from edgepack_packager.targets import DeviceConfig
from edgepack_runtime.inference.probe import probe_model

PROBE_SECONDS = 120.0


def describe_outcome(
    recipe: Recipe, subject: Subject, outcome: Outcome, locked: LockedTarget | None
) -> list[VariantContent]:
    """The variants for one target, the best first: a device takes the first that fits it."""
    names = variant_names(outcome.target.name, outcome.shipped)
    decided = locked.variants if locked else (None,) * len(names)
    return [
        _describe(recipe, subject, outcome.target, trial, outcome.fp32, name=name, locked=known)
        for name, trial, known in zip(names, outcome.shipped, decided, strict=True)
    ]


def memory_meter(
    recipe: Recipe, subject: Subject, target: DeviceConfig
) -> Callable[[Trial, Trial], int | None]:
    """Peak memory of a process that serves a candidate, measured by the device's own probe."""

    def measure(trial: Trial, fp32: Trial) -> int | None:
        content = _describe(
            replace(recipe, max_latency_ms=None, max_memory_bytes=None),
            subject,
            msgspec.structs.replace(target, budgets=Budgets()),
            trial,
            fp32,
            name=target.name,
            locked=None,
        )
        with TemporaryDirectory(prefix="edgepack-probe-") as folder:
            _lay_out(content, Path(folder))
            found = probe_model(Path(folder), timeout_s=PROBE_SECONDS)
        if not found.ok:
            raise ConversionError(
                f"{trial.name} fails the device's own probe: {found.words}", code=found.code
            )
        return found.peak_bytes

    return measure


def _describe(
    recipe: Recipe,
    subject: Subject,
    target: DeviceConfig,
    trial: Trial,
    fp32: Trial,
    *,
    name: str,
    locked: LockedVariant | None,
) -> VariantContent:
    old = None if recipe.previous is None else previous_reference(recipe.previous, target.name)
    chosen = Chosen(
        variant=name,
        target=target,
        plan=trial.made.plan,
        model=trial.made.graph,
        folder=trial.made.folder,
        fp32=fp32.made.folder,
        margins=fp32.made.margins,
        budgets=budgets_for(recipe, target),
        gates=declared_gates(trial, locked),
        metrics=trial.made.figures.metrics(subject.exam.dataset if subject.exam else ""),
    )
    return describe(recipe, subject, chosen, old=old)


def _lay_out(content: VariantContent, folder: Path) -> None:
    """Write a variant as a device holds it."""
    files = []
    for path, data in sorted(content.files.items()):
        raw = data if isinstance(data, bytes) else data.read_bytes()
        (folder / path).write_bytes(raw)
        files.append(FileEntry(path=path, size=len(raw), digest=sha256_digest(raw)))
    description = msgspec.structs.replace(content.description, files=files)
    (folder / DESCRIPTION_PATH).write_bytes(description.to_bytes())
