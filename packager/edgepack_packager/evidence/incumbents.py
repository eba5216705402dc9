"""The bundle that a candidate must not be worse than: opened, and asked the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgepack_contract.bundle import BundleFile
from edgepack_contract.description import Description, Task, TensorSpec
from edgepack_contract.errors import BundleError
from edgepack_contract.hardware import Hardware
from edgepack_contract.layout import unpack
from edgepack_contract.trusted import TrustedBundle
from edgepack_contract.variants import select_variant
from edgepack_packager.data.rows import Feeds, Rows, cast_feeds
from edgepack_packager.data.sequences import Indices
from edgepack_packager.errors import DataError, InputError
from edgepack_packager.evidence.decisions import Decisions
from edgepack_packager.graphs.running import run_rows
from edgepack_packager.graphs.steps import Steps, run_steps
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.session import Session
from edgepack_runtime.inference.variant import open_variant, read_description

Bind = Callable[[Rows, list[TensorSpec]], Feeds]
"""From rows to inputs, uncast, as the build does it for its own model."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a bundle said.

    Attributes:
        description: Of the variant that answered.
        digest: Of the bundle.
        outputs: Its outputs to the rows.
        decisions: How to read them.
    """

    description: Description
    digest: str
    outputs: Feeds
    decisions: Decisions

    @property
    def name(self) -> str:
        """What it is called in verdicts."""
        return f"{self.description.name} {self.description.version} ({self.description.variant})"


def ask_bundle(
    path: Path, rows: Rows, *,
    task: Task, bind: Bind, units: Indices | None, hardware: Hardware, folder: Path,
) -> Asked:  # fmt: skip
    """Run the variant for this machine, else the first that runs here, on rows.

    Args:
        path: The bundle.
        rows: The rows, with their columns.
        task: What the new model is for; the bundle must be for the same.
        bind: How columns become inputs.
        units: The number of each row's sequence.
        hardware: This machine.
        folder: A place to unpack it that does not exist yet.

    Raises:
        InputError: It is no intact bundle, for something else, or no variant of it runs here.
        DataError: The rows do not have what it takes.
    """
    try:
        with BundleFile.open(path) as file:
            bundle = unpack(file, folder)
    except (BundleError, OSError) as error:
        raise InputError(f"not worse than {path}: {error}", code="bad-incumbent") from error
    description, session = _open(bundle, folder, hardware, path)
    if description.task != task:
        raise InputError(
            f"{path.name} is for {description.task}, the new model for {task}: they cannot be "
            "compared",
            code="bad-incumbent",
        )
    specs = list(description.inputs)
    try:
        feeds = cast_feeds(bind(rows, specs), specs)
    except DataError as error:
        raise DataError(
            f"the evaluation rows do not fit {path.name}: {error}", code=error.code
        ) from error
    try:
        outputs = run_steps(partial(run_rows, session), feeds, _steps(specs, units, rows.n))
    except ModelError as error:
        raise InputError(
            f"{path.name} fails on the evaluation rows: {error}", code="bad-incumbent"
        ) from error
    return Asked(description, bundle.digest, outputs, described_decisions(description))


def _open(
    bundle: TrustedBundle, folder: Path, hardware: Hardware, path: Path
) -> tuple[Description, Session]:
    try:
        ranked = [variant.name for variant in select_variant(bundle.index, hardware)]
    except BundleError:
        ranked = []
    reasons = []
    for name in dict.fromkeys([*ranked, *(variant.name for variant in bundle.variants)]):
        try:
            description = read_description(folder / name)
            return description, open_variant(folder / name, description)
        except (ModelError, BundleError) as error:
            reasons.append(f"{name}: {error}")
    raise InputError(
        f"no variant of {path.name} runs here: {'; '.join(reasons)}", code="bad-incumbent"
    )


def _steps(specs: Sequence[TensorSpec], units: Indices | None, rows: int) -> Steps | None:
    sources = {spec.name: spec.source for spec in specs if spec.source is not None}
    if not sources:
        return None
    return Steps(sources, np.zeros(rows, dtype=np.intp) if units is None else units)


def described_decisions(description: Description) -> Decisions:
    """How to read the outputs of a bundle, which says it itself.

    Raises:
        InputError: It names no output that answers.
    """
    by_kind = {spec.kind: spec for spec in reversed(description.outputs)}
    scores = by_kind.get("probabilities") or by_kind.get("scores")
    label = by_kind.get("label")
    answer = label or scores if description.task == "classification" else by_kind.get("values")
    if answer is None and description.outputs:
        answer = description.outputs[0]
    if answer is None:
        raise InputError("the bundle has no outputs", code="bad-incumbent")
    names = (scores or answer).labels
    textual = label is not None and label.dtype == "str"
    whole = names is not None and all(name.lstrip("-").isdecimal() for name in names)
    classes = None
    if names is not None:
        classes = np.array([int(name) for name in names] if whole and not textual else names)
    return Decisions(
        task=description.task,
        outputs=tuple(description.outputs),
        answer=answer.name,
        scores=None if scores is None else scores.name,
        classes=classes,
    )
