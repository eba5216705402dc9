"""A model as it came, whatever made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from edgepack_contract.description import Task
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.recipe import PickleTrust

Answer = Callable[[Feeds], Feeds]
"""From uncast rows, one array per input, to the framework's own outputs by the graph's names.

It may leave out outputs, but never the one that answers: labels or values."""


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a source may need besides the file.

    Attributes:
        folder: A place for files in between.
        columns: A few rows of the data, uncast, by column or array; empty without data.
        trusted_types: Types that a ``.skops`` file may load besides the known safe ones.
        trust_pickle: Whether a pickle may be loaded, and how.
        seed: Decides every random choice.
    """

    folder: Path
    columns: Mapping[str, Array] = field(default_factory=dict)
    trusted_types: Sequence[str] = ()
    trust_pickle: PickleTrust = "no"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A model as it came.

    Attributes:
        graph: Its ONNX form, not yet cleaned.
        digest: Of the file it came from.
        framework: What made it, with the version, such as ``scikit-learn 1.7.2``.
        task: What it does, when the framework says so.
        features: Names of the columns of its only input, when the framework knows them.
        classes: Names of the classes in the order of its scores, when the framework knows them.
        answer: The framework's own predictions; None when the graph itself is the source.
        tools: Versions of the tools that loaded and converted it.
        passes: What was done to get the graph.
        sample: Example inputs that came with the model; None when none did.
        warnings: What the user should know of the conversion.
        wider: Gives the graph with numbers in float64, for models that branch on them.
    """

    graph: onnx.ModelProto
    digest: str
    framework: str
    task: Task | None
    features: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    answer: Answer | None
    tools: dict[str, str]
    passes: tuple[str, ...]
    sample: Feeds | None = None
    warnings: tuple[str, ...] = ()
    wider: Callable[[], onnx.ModelProto] | None = None


def as_labels(values: Array) -> Array:
    """Labels as 64-bit integers where they are whole numbers, else as texts."""
    flat = values.reshape(len(values), -1)[:, 0] if values.ndim > 1 else values
    if flat.dtype.kind in "biu":
        return flat.astype(np.int64)
    if flat.dtype.kind == "f" and np.array_equal(flat, np.round(flat)):
        return flat.astype(np.int64)
    return flat.astype(str)
