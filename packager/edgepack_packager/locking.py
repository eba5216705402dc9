"""What a build's lock is made from, and the lock of a finished build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgepack_contract.canonical import canonical_json
from edgepack_contract.digest import digest_stream
from edgepack_packager.lock import Lock, LockedTarget, LockedVariant, tool_versions
from edgepack_packager.recipe import Recipe, code_name
from edgepack_packager.search.judging import clocked_verdicts
from edgepack_packager.search.trials import Outcome
from edgepack_packager.subject import Subject

_VALUES = (
    "label", "time_column", "sequence_column", "slices", "inputs", "max_drop", "min_metric",
    "max_metric", "margin", "metric", "max_latency_ms", "max_size_bytes", "max_memory_bytes",
    "security_version", "task",
)  # fmt: skip
_FILES = ("preprocess", "postprocess", "not_worse_than", "previous")


def facts(recipe: Recipe, subject: Subject) -> dict[str, object]:
    """Everything that the identity of a bundle follows from, by the names of a lock's fields.

    Whatever only decides how the search goes is left out: the lock holds what it found.
    """
    return {
        "name": recipe.name,
        "version": recipe.version,
        "seed": recipe.seed,
        "source": subject.source.digest,
        "data": subject.data,
        "options": options(recipe),
        "tools": {**tool_versions(), **subject.source.tools},
    }


def options(recipe: Recipe) -> dict[str, str]:
    """The options of a recipe that were given and that enter the bundle, as text."""
    default = Recipe(model=recipe.model, name=recipe.name, version=recipe.version)
    given = {
        name: canonical_json(_plain(getattr(recipe, name))).decode()
        for name in _VALUES
        if getattr(recipe, name) != getattr(default, name)
    }
    files = {name: getattr(recipe, name) for name in _FILES}
    return given | {name: _digest(path) for name, path in files.items() if path is not None}


def new_lock(found: Mapping[str, object], outcomes: Sequence[Outcome], digest: str) -> Lock:
    """The lock of a finished build.

    Args:
        found: What it was made from.
        outcomes: What was chosen.
        digest: The identity of the bundle.
    """
    targets = {
        outcome.target.name: LockedTarget(
            variants=tuple(
                LockedVariant(plan=trial.made.plan, verdicts=clocked_verdicts(trial))
                for trial in outcome.shipped
            )
        )
        for outcome in outcomes
    }
    return msgspec.convert({**found, "targets": targets, "digest": digest}, Lock)


def _plain(value: object) -> object:
    return msgspec.to_builtins(value)


def _digest(path: Path) -> str:
    if code_name(path) is not None:
        return str(path)
    with path.open("rb") as stream:
        return digest_stream(stream, size=path.stat().st_size, what=str(path))
