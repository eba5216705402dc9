"""One variant in a folder, opened: its description read, its graph loaded and held against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepack_contract.description import (
    DESCRIPTION_PATH,
    MODEL_PATH,
    Description,
    TensorSpec,
    parse_description,
)
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_runtime.inference.errors import ModelLoadError
from edgepack_runtime.inference.session import Session, TensorInfo, open_session


def read_description(folder: Path) -> Description:
    """Read ``edgepack.json`` of an unpacked variant.

    Raises:
        MalformedBundleError: It is not a description.
        OSError: It cannot be read.
    """
    return parse_description(read_small(folder / DESCRIPTION_PATH, LIMITS.description_bytes))


def open_variant(
    folder: Path, description: Description, *, default_threads: int = 1, arena: bool = True
) -> Session:
    """Load the model of an unpacked variant as its description says.

    Raises:
        ModelLoadError: It does not load, or its inputs or outputs are not those described.
    """
    session = open_session(
        folder / MODEL_PATH, description.session, default_threads=default_threads, arena=arena
    )
    _check_tensors("input", description.inputs, session.inputs)
    _check_tensors("output", description.outputs, session.outputs)
    return session


def _check_tensors(side: str, specs: Sequence[TensorSpec], infos: Sequence[TensorInfo]) -> None:
    found = {info.name: info for info in infos}
    if found.keys() != {spec.name for spec in specs}:
        raise ModelLoadError(
            f"the graph has the {side}s {sorted(found)}, "
            f"the description {sorted(spec.name for spec in specs)}"
        )
    for spec in specs:
        info = found[spec.name]
        if info.dtype != spec.dtype or not _shapes_agree(spec, info):
            raise ModelLoadError(
                f"{side} {spec.name!r} is {info.dtype}{list(info.shape)} in the graph and "
                f"{spec.dtype}{spec.shape} in the description"
            )


def _shapes_agree(spec: TensorSpec, info: TensorInfo) -> bool:
    # a graph may leave out the shape of an output altogether, and dimensions may be named in one
    # place only; a size given in both must be the same
    if not info.shape and spec.shape:
        return True
    return len(info.shape) == len(spec.shape) and all(
        not (isinstance(given, int) and isinstance(wanted, int)) or given == wanted
        for given, wanted in zip(info.shape, spec.shape, strict=True)
    )
