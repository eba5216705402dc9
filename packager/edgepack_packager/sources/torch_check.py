"""Whether an exported graph answers as PyTorch does at sizes that the example did not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.graphs.clean import clean_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import open_folder, save_model
from edgepack_packager.sources.model import Answer
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.session import Session

RTOL = 1e-3
"""Two libraries add in another order; a size that was baked in gives other answers altogether."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of rows to try, and the axes of each input that have two lengths."""

    rows: tuple[int, ...]
    axes: Mapping[str, Mapping[int, str]]


def check_sizes(graph: onnx.ModelProto, answer: Answer, sample: Feeds, sizes: Sizes) -> bool:
    """Whether ``graph`` gives the framework's own answers at every size that it can take.

    Args:
        graph: As exported.
        answer: The framework's answers.
        sample: The example.
        sizes: What to try; lengths that the framework itself refuses are left out.
    """
    cleaned, _ = run_passes(graph, clean_passes())
    with TemporaryDirectory(prefix="edgepack-export-") as name:
        save_model(cleaned, Path(name))
        try:
            session = open_folder(Path(name))
        except ModelError:
            return False
        return all(_agrees(session, answer, feeds) for feeds in _variations(sample, sizes))


def _variations(sample: Feeds, sizes: Sizes) -> Iterator[Feeds]:
    for rows in sizes.rows:
        feeds = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in sample.items()}
        yield feeds
        if any(sizes.axes.values()):
            yield _stretched(feeds, sizes.axes)


def _stretched(feeds: Feeds, axes: Mapping[str, Mapping[int, str]]) -> Feeds:
    """The same with every open axis one shorter, or twice as long where it has one entry."""
    found = {}
    for name, given in feeds.items():
        array = given
        for axis in axes.get(name, {}):
            length = array.shape[axis]
            array = np.take(array, range(length - 1) if length > 1 else [0, 0], axis=axis)
        found[name] = array
    return found


def _agrees(session: Session, answer: Answer, feeds: Feeds) -> bool:
    try:
        wanted = answer(feeds)
    except Exception:  # noqa: BLE001 - the model is the user's code: this size is not for it
        return True
    try:
        found = session.run(feeds)
    except ModelError:
        return False
    return all(_near(found[name], wanted[name]) for name in wanted)


def _near(found: Array, wanted: Array) -> bool:
    if found.shape != wanted.shape:
        return False
    if wanted.dtype.kind != "f":
        # labels: ties may fall either way, sizes that were baked in make many of them differ
        return bool(np.mean(found == wanted) >= 0.5)
    scale = float(np.max(np.abs(wanted[np.isfinite(wanted)]), initial=1.0))
    return bool(np.allclose(found, wanted, rtol=RTOL, atol=RTOL * scale, equal_nan=True))
