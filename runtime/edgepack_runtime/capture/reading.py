"""Captured requests read back: listed, shown, joined into arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack_runtime.capture.records import Captured, CaptureError, Origin, decode
from edgepack_runtime.capture.ring import read_records, segments
from edgepack_runtime.inference.session import Tensor


@dataclass(frozen=True, slots=True)
class Found:
    """A captured request by its name, with its size on the disk in bytes."""

    name: str
    size: int
    captured: Captured


def read_captured(
    folder: Path, *, slot: str | None = None, version: str | None = None, request: str | None = None
) -> Iterator[Found]:
    """The captured requests of a folder, oldest first.

    Of one slot, of one version, and with one id or key when these are named.

    A segment that the daemon removes in the meantime is left out.

    Raises:
        PermissionError: They are somebody else's.
    """
    for segment in segments(folder):
        try:
            for name, raw in read_records(segment):
                captured = decode(raw)
                origin = captured.origin
                if (
                    slot in (None, origin.slot)
                    and version in (None, origin.version)
                    and request in (None, origin.request, origin.key)
                ):
                    yield Found(name, len(raw), captured)
        except FileNotFoundError:
            continue


def joined(
    found: Iterable[Captured], *, outputs: bool = False, origins: bool = False
) -> dict[str, Tensor]:
    """The rows of many requests below each other.

    A tensor that lost columns becomes an array for each column that is left.

    Args:
        found: The requests.
        outputs: Also the answers, as ``output:NAME``.
        origins: Also of which request each row is, as ``origin:request`` and ``origin:key`` (texts,
            empty where there was none) and ``origin:at`` (ms since 1970 UTC).

    Returns:
        Arrays by input name, as ``edgepack build --data`` reads them; texts of fixed width.

    Raises:
        CaptureError: They are of models that take other inputs.
    """
    parts: dict[str, list[Tensor]] = {}
    count = 0
    for captured in found:
        count += 1
        arrays = list(_arrays(captured, outputs=outputs))
        if origins and arrays:
            arrays += _origin(captured.origin, rows=len(np.atleast_1d(arrays[0][1])))
        for name, tensor in arrays:
            parts.setdefault(name, []).append(tensor)
    if any(len(tensors) != count for tensors in parts.values()):
        raise _mixed()
    try:
        return {name: _below_each_other(tensors) for name, tensors in parts.items()}
    except ValueError as error:
        raise _mixed() from error


def _arrays(captured: Captured, *, outputs: bool) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in captured.tensors.items():
        side, _, plain = name.partition(":")
        if side == "output" and not outputs:
            continue
        shown = plain if side == "input" else name
        columns = captured.origin.columns.get(name)
        if columns is None:
            yield shown, tensor
        else:
            yield from ((one, tensor[..., place]) for place, one in enumerate(columns))


def _origin(origin: Origin, *, rows: int) -> Iterator[tuple[str, Tensor]]:
    yield "origin:request", np.full(rows, origin.request or "")
    yield "origin:key", np.full(rows, origin.key or "")
    yield "origin:at", np.full(rows, origin.at)


def _below_each_other(tensors: list[Tensor]) -> Tensor:
    whole = np.concatenate([np.atleast_1d(tensor) for tensor in tensors])
    # what is an object could only be stored as code
    return whole.astype(str) if whole.dtype.kind == "O" else whole


def _mixed() -> CaptureError:
    return CaptureError(
        "these requests do not fit below each other; name one model with --slot and --version"
    )
