"""One build from beginning to end: load, clean, search, describe, write, sign, report."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack_contract.atomic import replacing
from edgepack_contract.description import Description
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.layout import BundleContent, VariantContent, outline, write_bundle
from edgepack_packager.errors import ConversionError, InputError, LockError, RecipeError
from edgepack_packager.evidence.slices import slice_warning
from edgepack_packager.graphs.releases import check_readable
from edgepack_packager.lock import Lock, check_lock, read_lock, write_lock
from edgepack_packager.locking import facts, new_lock
from edgepack_packager.recipe import Recipe
from edgepack_packager.report.document import report_of
from edgepack_packager.report.files import REPORT_HTML, REPORT_JSON, evidence_files
from edgepack_packager.report.table import BuildResult, CandidateRow, row_of, table_of
from edgepack_packager.search.bench import Bench
from edgepack_packager.search.measured import (
    measured_on,
    read_measured,
    strangers,
    unknown_models,
)
from edgepack_packager.search.panel import Panel
from edgepack_packager.search.trials import Outcome, Trial
from edgepack_packager.subject import Subject, load_subject
from edgepack_packager.targets import (
    DeviceConfig,
    default_target,
    jobs_here,
    load_target,
)
from edgepack_packager.variants import describe_outcome, memory_meter
from edgepack_runtime.inference.errors import ModelError

EXPLORING_SHARE = 0.8
"""Of a time budget; the rest is for measuring, alone, what was found."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room, on the disk or for this user or process."""


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
    try:
        return _build(recipe, _Steps(progress))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise RecipeError(
            f"there is no room to write {error.filename or 'files of the build'}: "
            f"{error.strerror}; make some, or point TMPDIR and --output elsewhere",
            code="disk-full",
        ) from error
    except ModelError as error:
        raise ConversionError(f"the model fails: {error}", code="model-failed") from error


def _build(recipe: Recipe, steps: _Steps) -> BuildResult:
    signer = _signer(recipe)
    lock = _lock(recipe)
    targets = _targets(recipe, lock)
    with TemporaryDirectory(prefix="edgepack-build-") as name:
        folder = Path(name)
        with steps.step("load"):
            subject = load_subject(recipe, folder)
        found = facts(recipe, subject)
        if lock is not None:
            check_lock(lock, found=found)
            _check_targets(lock, targets)
        jobs = jobs_here(recipe.jobs)
        panel = Panel(recipe, subject, folder, jobs=jobs, clock=time.monotonic)
        with steps.step("search"), panel:
            outcomes, told = _search(recipe, subject, panel, steps, targets=targets, lock=lock)
        with steps.step("describe"):
            content = _content(recipe, subject, outcomes, lock)
        warnings = _warnings(recipe, [*subject.warnings, *told], outcomes)
        digest, descriptions = _outline(content)
        report = report_of(
            recipe, subject, outcomes, warnings=warnings, seconds=steps.seconds, digest=digest
        )
        evidence = evidence_files(report, descriptions)
        with steps.step("write"):
            _write(recipe, content, signer, evidence, lock)
    if recipe.lock is not None and lock is None:
        write_lock(recipe.lock, new_lock(found, outcomes, digest))
    _write_reports(recipe, evidence)
    return BuildResult(
        recipe.output, digest, table_of(outcomes), warnings, json.loads(evidence[REPORT_JSON])
    )


def _content(
    recipe: Recipe, subject: Subject, outcomes: Sequence[Outcome], lock: Lock | None
) -> BundleContent:
    variants: list[VariantContent] = []
    for outcome in outcomes:
        locked = lock.targets[outcome.target.name] if lock else None
        variants += describe_outcome(recipe, subject, outcome, locked)
    return BundleContent(variants=variants)


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


def _targets(recipe: Recipe, lock: Lock | None) -> list[DeviceConfig]:
    """The targets, most generic first, as a bundle lists its variants."""
    usual = (default_target(),) if lock is None else tuple(lock.targets)
    targets = [load_target(name) for name in recipe.targets or usual]
    return sorted(targets, key=lambda target: (len(target.features), target.name))


def _lock(recipe: Recipe) -> Lock | None:
    return read_lock(recipe.lock) if recipe.locked and recipe.lock is not None else None


def _search(
    recipe: Recipe,
    subject: Subject,
    panel: Panel,
    steps: _Steps,
    *,
    targets: Sequence[DeviceConfig],
    lock: Lock | None,
) -> tuple[list[Outcome], list[str]]:
    """The outcome of every target, and what the user should know of the search."""
    benchmarks = read_measured(recipe.measured)
    for target in targets:
        check_readable(subject.model, target.onnxruntime, target.name)
    bench = Bench(recipe, subject, panel, tell=steps.tell, tried=steps.tried)
    outcomes = []
    begin = time.monotonic()
    for place, target in enumerate(targets, start=1):
        if lock is not None:
            outcomes.append(bench.repeat(target, lock.targets[target.name]))
            continue
        panel.until = _until(recipe, begin, place / len(targets))
        measured = measured_on(target, benchmarks)
        meter = memory_meter(recipe, subject, target)
        outcomes.append(bench.search(target, measured, meter))
    digests = {made.digest for made in panel.made} if benchmarks else set()
    told = [*strangers(benchmarks, targets), *unknown_models(benchmarks, digests)]
    return outcomes, [*bench.warnings, *told]


def _until(recipe: Recipe, begin: float, share: float) -> float | None:
    """When the candidates of a target must be done; what is left of its time is for timing them."""
    budget = recipe.time_budget_s
    return None if budget is None else begin + budget * share * EXPLORING_SHARE


def _check_targets(lock: Lock, targets: Sequence[DeviceConfig]) -> None:
    if lock.targets.keys() != {target.name for target in targets}:
        raise LockError(
            f"the lock was made for {', '.join(sorted(lock.targets))}", code="lock-differs"
        )


def _warnings(recipe: Recipe, told: Sequence[str], outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    found = list(told)
    foreign = [outcome.target.name for outcome in outcomes if outcome.measured_on is None]
    if foreign:
        found.append(
            f"{', '.join(foreign)}: latency and memory are not measured, this machine is not one "
            "of them; devices check golden rows and budgets before they serve"
        )
    for outcome in outcomes:
        found += outcome.warnings
        found += [f"{outcome.target.name}: {text}" for text in outcome.choice.warnings]
        found += _slice_warnings(outcome)
    found += _own_target(recipe)
    if recipe.key is None:
        found.append("the bundle is not signed; devices refuse it until it is: edgepack sign")
    return tuple(found)


def _slice_warnings(outcome: Outcome) -> list[str]:
    chosen = outcome.chosen
    allowed = [v.gate.threshold for v in chosen.verdicts if v.gate.name == "max-drop"]
    found = [slice_warning(chosen.made.figures, limit) for limit in allowed]
    return [f"{outcome.target.name} {chosen.name}: {text}" for text in found if text is not None]


def _own_target(recipe: Recipe) -> list[str]:
    """What a bundle is for that was built without a word about it."""
    if recipe.targets or recipe.locked or not load_target(default_target()).features:
        return []
    words = (
        f"no target was named: this is for {default_target()}, the kind of processor of this "
        "machine; name others with --target, see edgepack targets list"
    )
    return [words]


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
            if error.errno in _FULL:
                error.filename = error.filename or str(output)
                raise
            raise RecipeError(f"cannot write {output}: {error}", code="cannot-write") from error


def _write_reports(recipe: Recipe, evidence: Mapping[str, bytes]) -> None:
    for path, name in ((recipe.report_json, REPORT_JSON), (recipe.report_html, REPORT_HTML)):
        if path is not None:
            with replacing(path) as part:
                part.write_bytes(evidence[name])
