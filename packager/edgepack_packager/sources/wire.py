"""What is said between a build and the child that loads a model for it: data, and never code.

A frame is eight bytes of length, big-endian, and a msgpack message of one of the types below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from edgepack_contract.description import Task
from edgepack_packager.data.rows import Array, Feeds

LENGTH_BYTES = 8

Kind = Literal["pickle", "exported", "keras", "savedmodel", "tflite"]
"""How the child loads what it is given."""

_PLAIN_KINDS = frozenset("biufMm")
_ITEM_BYTES = 16
"""The longest scalar of those kinds."""


class Tensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One array: ``data`` holds its bytes, or ``cells`` the texts and gaps of one without."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes = b""
    cells: tuple[str | int | float | bool | None, ...] | None = None


class Hello(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first words of a child, in JSON: ``why`` it is not enclosed; empty when it is."""

    why: str = ""


class Load(msgspec.Struct, frozen=True, kw_only=True, tag="load", forbid_unknown_fields=True):
    """Load and convert ``path``; the rest is what :class:`LoadContext` says."""

    kind: Kind
    path: str
    digest: str
    columns: list[Tensor] = []
    seed: int = 0
    sample: list[Tensor] = []


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask", forbid_unknown_fields=True):
    """Answer some rows."""

    feeds: list[Tensor]


class Widen(msgspec.Struct, frozen=True, kw_only=True, tag="widen", forbid_unknown_fields=True):
    """Give the form that computes in 64-bit floats."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded", forbid_unknown_fields=True):
    """The converted model; ``graph`` is serialised ONNX without weights elsewhere."""

    graph: bytes
    framework: str
    task: Task | None
    features: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    tools: dict[str, str]
    passes: tuple[str, ...]
    sample: list[Tensor] | None
    warnings: tuple[str, ...]
    answers: bool
    widens: bool


class Answered(
    msgspec.Struct, frozen=True, kw_only=True, tag="answered", forbid_unknown_fields=True
):
    """Outputs of the rows."""

    outputs: list[Tensor]


class Widened(msgspec.Struct, frozen=True, kw_only=True, tag="widened", forbid_unknown_fields=True):
    """The form in 64-bit floats."""

    graph: bytes


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", forbid_unknown_fields=True):
    """It cannot be done: ``blame`` says whose fault that is, as :mod:`edgepack_packager.errors`."""

    blame: Literal["source", "conversion", "data", "value"]
    code: str
    words: str


Request = Load | Ask | Widen
Reply = Loaded | Answered | Widened | Failed


def to_tensors(feeds: Mapping[str, Array]) -> list[Tensor]:
    """Arrays as they travel.

    Raises:
        ValueError: A cell is neither text nor number nor missing.
    """
    return [_to_tensor(name, array) for name, array in feeds.items()]


def from_tensors(tensors: list[Tensor]) -> Feeds:
    """The arrays again.

    Raises:
        ValueError: A tensor contradicts itself.
    """
    return {tensor.name: _from_tensor(tensor) for tensor in tensors}


def _to_tensor(name: str, array: Array) -> Tensor:
    if array.dtype.kind in _PLAIN_KINDS:
        dense = np.ascontiguousarray(array)
        return Tensor(name=name, dtype=dense.dtype.str, shape=array.shape, data=dense.tobytes())
    kind = "str" if array.dtype.kind == "U" else "object"
    cells = tuple(_cell(value) for value in array.reshape(-1))
    return Tensor(name=name, dtype=kind, shape=array.shape, cells=cells)


def _cell(value: Any) -> str | int | float | bool | None:
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or isinstance(plain, (str, int, float, bool)):
        return plain
    if plain != plain:  # noqa: PLR0124 - pandas' NaT and NA-like values, which equal nothing
        return None
    raise ValueError(f"a cell holds a {type(value).__name__}, which is neither text nor number")


def _from_tensor(tensor: Tensor) -> Array:
    if tensor.cells is not None:
        if tensor.dtype not in {"str", "object"}:
            raise ValueError(f"{tensor.name}: cells of type {tensor.dtype!r}")
        cells: Array = np.empty(len(tensor.cells), dtype=object)
        cells[:] = tensor.cells
        return (cells.astype(str) if tensor.dtype == "str" else cells).reshape(tensor.shape)
    try:
        dtype = np.dtype(tensor.dtype)
    except TypeError as error:
        raise ValueError(f"{tensor.name}: no type is called {tensor.dtype!r}") from error
    if dtype.kind not in _PLAIN_KINDS or dtype.itemsize > _ITEM_BYTES:
        raise ValueError(f"{tensor.name}: arrays of {tensor.dtype!r} do not travel")
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape).copy()
