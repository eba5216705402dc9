"""One build from beginning to end: load, clean, search, describe, write, sign, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edgepack_contract.atomic import replacing
from edgepack_contract.description import DESCRIPTION_PATH, Budgets, Description, FileEntry
from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.layout import BundleContent, VariantContent, outline, write_bundle
from edgepack_packager.describe import Chosen, describe, previous_reference
from edgepack_packager.errors import ConversionError, InputError, LockError, RecipeError
from edgepack_packager.lock import (
    Lock,
    LockedTarget,
    check_lock,
    read_lock,
    tool_versions,
    write_lock,
)
from edgepack_packager.recipe import Recipe
from edgepack_packager.report.document import report_of
from edgepack_packager.report.files import REPORT_HTML, REPORT_JSON, evidence_files
from edgepack_packager.report.table import BuildResult, CandidateRow, row_of, table_of
from edgepack_packager.search.bench import Bench
from edgepack_packager.search.judging import budgets_for, clocked_verdicts, declared_gates
from edgepack_packager.search.trials import Outcome, Trial
from edgepack_packager.subject import Subject, load_subject
from edgepack_packager.targets import DeviceConfig, default_target, load_target, this_hardware
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.probe import probe_model

PROBE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build is.

    Attributes:
        step: ``load``, ``search``, ``describe`` or ``write``.
        detail: What is being done in it; empty when it begins.
        seconds: Since the build began.
        tried: The candidate that was just tried, where one was.
    """

    step: str
    detail: str
    seconds: float
    tried: CandidateRow | None = None

    def __str__(self) -> str:
        words = f"{self.step}: {self.detail}" if self.detail else self.step
        return f"{self.seconds:6.1f} s  {words}"


Listener = Callable[[Progress], None]


class _Steps:
    """Tells where the build is, and keeps how long each step took."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._begin = time.monotonic()
        self._step = ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        self._step = name
        self.tell("")
        yield
        self.seconds[name] = time.monotonic() - begin

    def tell(self, detail: str) -> None:
        self._say(detail, None)

    def tried(self, target: str, trial: Trial) -> None:
        self._say(f"{target}: {trial.name} tried", row_of(target, trial))

    def _say(self, detail: str, tried: CandidateRow | None) -> None:
        if self._listener is not None:
            seconds = time.monotonic() - self._begin
            self._listener(Progress(self._step, detail, seconds, tried))


def build(recipe: Recipe, progress: Listener | None = None) -> BuildResult:
    """Convert a model, choose the best proven candidate per target, and write one bundle.

    Nothing is written unless everything succeeded, and no bundle where the recipe names none.

    Args:
        recipe: What to build.
        progress: Called at the beginning of every step and for every candidate.

    Raises:
        RecipeError: The recipe contradicts itself or names something unknown.
        InputError: The model or the data cannot be used.
        AccuracyGateError: No candidate is inside the accuracy gates.
        BudgetError: No candidate is inside the budgets.
        LockError: A locked build cannot be repeated.
        SigningKeyError: The key cannot be used.
    """
    steps = _Steps(progress)
    signer = _signer(recipe)
    targets = _targets(recipe)
    lock = _lock(recipe)
    with TemporaryDirectory(prefix="edgepack-build-") as name:
        folder = Path(name)
        try:
            with steps.step("load"):
                subject = load_subject(recipe, folder)
            found = _facts(recipe, subject)
            if lock is not None:
                check_lock(lock, found=found)
            bench = Bench(recipe, subject, folder, steps.tell)
            with steps.step("search"):
                outcomes = _search(bench, recipe, subject, targets, lock)
            with steps.step("describe"):
                variants = [_variant(recipe, subject, outcome, lock) for outcome in outcomes]
        except ModelError as error:
            raise ConversionError(f"the model fails: {error}", code="model-failed") from error
        warnings = _warnings(recipe, subject, bench, outcomes)
        content = BundleContent(variants=variants)
        digest, descriptions = _outline(content)
        report = report_of(
            recipe, subject, outcomes, warnings=warnings, seconds=steps.seconds, digest=digest
        )
        evidence = evidence_files(report, descriptions)
        with steps.step("write"):
            _write(recipe, content, signer, evidence, lock)
    if recipe.lock is not None and lock is None:
        write_lock(recipe.lock, _new_lock(found, outcomes, digest))
    _write_reports(recipe, evidence)
    return BuildResult(
        recipe.output, digest, table_of(outcomes), warnings, json.loads(evidence[REPORT_JSON])
    )


def _outline(content: BundleContent) -> tuple[str, list[Description]]:
    try:
        return outline(content)
    except MalformedBundleError as error:
        raise InputError(f"this model cannot be described: {error}", code=error.code) from error


def _check_output(recipe: Recipe) -> None:
    if recipe.output is None:
        return
    if not recipe.output.parent.is_dir():
        raise RecipeError(
            f"there is no folder {recipe.output.parent} to write into", code="no-folder"
        )
    if recipe.output.exists() and not recipe.overwrite:
        raise RecipeError(
            f"{recipe.output} is there already; give --overwrite to replace it, or another "
            "version: devices take a version for one thing",
            code="output-exists",
        )


def _signer(recipe: Recipe) -> PrivateKey | None:
    _check_output(recipe)
    return None if recipe.key is None else read_private_key(recipe.key, recipe.passphrase)


def _targets(recipe: Recipe) -> list[DeviceConfig]:
    """The targets, most generic first, as a bundle lists its variants."""
    targets = [load_target(name) for name in recipe.targets or (default_target(),)]
    return sorted(targets, key=lambda target: len(target.features))


def _lock(recipe: Recipe) -> Lock | None:
    return read_lock(recipe.lock) if recipe.locked and recipe.lock is not None else None


def _facts(recipe: Recipe, subject: Subject) -> dict[str, object]:
    """Everything that a lock is made from."""
    return {
        "name": recipe.name,
        "version": recipe.version,
        "seed": recipe.seed,
        "source": subject.source.digest,
        "data": subject.data,
        "tools": {**tool_versions(), **subject.source.tools},
    }


def _search(
    bench: Bench,
    recipe: Recipe,
    subject: Subject,
    targets: Sequence[DeviceConfig],
    lock: Lock | None,
) -> list[Outcome]:
    if lock is None:
        return [bench.search(target, _memory_meter(recipe, subject, target)) for target in targets]
    if lock.targets.keys() != {target.name for target in targets}:
        raise LockError(
            f"the lock was made for {', '.join(sorted(lock.targets))}", code="lock-differs"
        )
    return [bench.repeat(target, lock.targets[target.name]) for target in targets]


def _variant(
    recipe: Recipe, subject: Subject, outcome: Outcome, lock: Lock | None
) -> VariantContent:
    locked = lock.targets[outcome.target.name] if lock else None
    return _describe(recipe, subject, outcome.target, outcome.chosen, outcome.fp32, locked)


def _describe(
    recipe: Recipe,
    subject: Subject,
    target: DeviceConfig,
    trial: Trial,
    fp32: Trial,
    locked: LockedTarget | None,
) -> VariantContent:
    old = None if recipe.previous is None else previous_reference(recipe.previous, target.name)
    chosen = Chosen(
        target=target,
        plan=trial.made.plan,
        model=trial.made.model,
        folder=trial.made.folder,
        fp32=fp32.made.folder,
        margins=fp32.made.margins,
        budgets=budgets_for(recipe, target),
        gates=declared_gates(trial, locked),
        metrics=trial.made.figures.metrics(subject.exam.dataset if subject.exam else ""),
    )
    return describe(recipe, subject, chosen, old=old)


def _memory_meter(
    recipe: Recipe, subject: Subject, target: DeviceConfig
) -> Callable[[Trial, Trial], int | None]:
    """Peak memory of a process that serves a candidate, measured by the device's own probe."""

    def measure(trial: Trial, fp32: Trial) -> int | None:
        if not target.is_this(this_hardware()):
            return None
        content = _describe(
            replace(recipe, max_latency_ms=None, max_memory_bytes=None),
            subject,
            msgspec.structs.replace(target, budgets=Budgets()),
            trial,
            fp32,
            None,
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


def _lay_out(content: VariantContent, folder: Path) -> None:
    """Write a variant as a device holds it."""
    files = []
    for path, data in sorted(content.files.items()):
        raw = data if isinstance(data, bytes) else data.read_bytes()
        (folder / path).write_bytes(raw)
        files.append(FileEntry(path=path, size=len(raw), digest=sha256_digest(raw)))
    description = msgspec.structs.replace(content.description, files=files)
    (folder / DESCRIPTION_PATH).write_bytes(description.to_bytes())


def _warnings(
    recipe: Recipe, subject: Subject, bench: Bench, outcomes: Sequence[Outcome]
) -> tuple[str, ...]:
    found = [*subject.warnings, *bench.warnings]
    foreign = [outcome.target.name for outcome in outcomes if not outcome.measured_here]
    if foreign:
        found.append(
            f"{', '.join(foreign)}: latency and memory are not measured, this machine is not one "
            "of them; devices check golden rows and budgets before they serve"
        )
    found += [
        f"{outcome.target.name}: {text}" for outcome in outcomes for text in outcome.choice.warnings
    ]
    if recipe.key is None:
        found.append("the bundle is not signed; devices refuse it until it is: edgepack sign")
    return tuple(found)


def _write(
    recipe: Recipe,
    content: BundleContent,
    signer: PrivateKey | None,
    evidence: Mapping[str, bytes],
    lock: Lock | None,
) -> None:
    with TemporaryDirectory(prefix="edgepack-check-") as folder:
        output = recipe.output or Path(folder) / "check.edgepack"
        try:
            with replacing(output) as part:
                digest = write_bundle(part, content, signer=signer, evidence=evidence)
                if lock is not None and digest != lock.digest:
                    raise LockError(
                        f"this build gives {digest}, the lock {lock.digest}: the recipe, or the "
                        "kind of processor, is another one",
                        code="other-digest",
                    )
        except OSError as error:
            raise RecipeError(f"cannot write {output}: {error}", code="cannot-write") from error


def _new_lock(found: dict[str, object], outcomes: Sequence[Outcome], digest: str) -> Lock:
    targets = {
        outcome.target.name: LockedTarget(
            plan=outcome.chosen.made.plan, verdicts=clocked_verdicts(outcome.chosen)
        )
        for outcome in outcomes
    }
    return msgspec.convert({**found, "targets": targets, "digest": digest}, Lock)


def _write_reports(recipe: Recipe, evidence: Mapping[str, bytes]) -> None:
    for path, name in ((recipe.report_json, REPORT_JSON), (recipe.report_html, REPORT_HTML)):
        if path is not None:
            with replacing(path) as part:
                part.write_bytes(evidence[name])
