"""From what a caller sends to the arrays that a model takes, or an error that says why not.

Strict on purpose: a text is not a number, a truth value is not a number, 1.5 is not an integer.
What is refused here would otherwise become a wrong prediction.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from edgepack_contract.description import Description, DimensionRange, TensorSpec
from edgepack_runtime.inference.errors import BadRequestError, NonfiniteInputError, ShapeError
from edgepack_runtime.inference.session import Tensor, numpy_dtype

_MAX_RANK = 16
_MOST_IN_EMPTY = 2**20
_MOST_OF_A_SIZE = 2**40
"""More than a body can hold; products of such sizes can still be written in words."""
_MOST_WORDS = 200
_FEW, _VERY_FEW = 1024, 8
_SQUARES = {"float16": 4.0e9, "float32": 1.0e77}
"""Values whose squares add up to less are in the type's range."""

_OPENING = re.compile(rb"[\[ \t\r\n]*")

Policy = Literal["refuse", "count"]


def tensor_from_json(spec: TensorSpec, raw: msgspec.Raw, shape: Sequence[int]) -> Tensor:
    """Decode one tensor of the Open Inference Protocol: nested or flat row-major ``data``.

    Args:
        spec: The input as the bundle describes it.
        raw: The JSON text of ``data``.
        shape: The shape that came with it.

    Raises:
        BadRequestError: The data are not JSON numbers (texts, truth values) of the input's type.
        ShapeError: ``shape`` is not one that the input takes, or not the shape of the data.
    """
    check_shape(spec, shape)
    depth = _depth(raw)
    flat = depth == 1
    if not flat and depth != len(shape):
        raise ShapeError(
            f"input {spec.name!r}: the data are nested {depth} deep for the shape {list(shape)}"
        )
    values = _to_array(spec, _decode(spec, raw, depth))
    if values.size != math.prod(shape) or (not flat and values.shape != tuple(shape)):
        raise ShapeError(
            f"input {spec.name!r}: the shape {list(shape)} holds {math.prod(shape)} values, "
            f"the data are {list(values.shape)}"
        )
    return values.reshape(shape)


def tensor_from_values(spec: TensorSpec, values: object) -> Tensor:
    """Make a tensor from an array, or from nested lists of plain Python values.

    Raises:
        BadRequestError: The values cannot stand for the input's type.
        ShapeError: The shape is not one that the input takes.
    """
    array = (
        _cast(spec, values)
        if isinstance(values, np.ndarray | np.generic)
        else _to_array(spec, _convert(spec, values))
    )
    check_shape(spec, array.shape)
    return array


def rows_from_json(spec: TensorSpec, raw: msgspec.Raw) -> Tensor:
    """Decode a JSON list of rows for one input, shaped as the rows are nested.

    Raises:
        BadRequestError: See :func:`tensor_from_json`.
        ShapeError: Rows of different lengths, or not the input's shape.
    """
    array = _to_array(spec, _decode(spec, raw, _depth(raw)))
    check_shape(spec, array.shape)
    return array


def check_shape(spec: TensorSpec, shape: Sequence[int]) -> None:
    """Check a shape against the sizes that an input fixes; those that it leaves open may be 0.

    Raises:
        ShapeError: Another number of dimensions, or another size.
    """
    fits = len(shape) == len(spec.shape)
    for given, wanted in zip(shape, spec.shape, strict=False):
        if given != wanted and (not 0 <= given <= _MOST_OF_A_SIZE or isinstance(wanted, int)):
            fits = False
    # no body bounds the other sizes of an empty tensor, which a reduction would make room for
    if not fits or (0 in shape and math.prod(filter(None, shape)) > _MOST_IN_EMPTY):
        raise ShapeError(
            f"input {spec.name!r}: expected shape {_shape_text(spec)} of {spec.dtype}, "
            f"given {_short(str(list(shape[: 2 * _MAX_RANK])))}"
        )


def check_feeds(description: Description, feeds: Mapping[str, Tensor]) -> None:
    """Check the inputs of one request against each other.

    Raises:
        BadRequestError: An input is missing or unknown.
        ShapeError: Dimensions of one name differ in size, or a size is out of its range.
        NonfiniteInputError: NaN or an infinity where the bundle refuses them.
    """
    inputs = description.inputs
    if len(feeds) != len(inputs) or any(spec.name not in feeds for spec in inputs):
        names = {spec.name for spec in inputs}
        raise BadRequestError(_names_text(names - feeds.keys(), feeds.keys() - names))
    sizes: dict[str, int] = {}
    for spec in inputs:
        _check_dimensions(spec, feeds[spec.name].shape, sizes, description.dimensions)
        if description.on_nonfinite == "refuse":
            check_finite(spec.name, feeds[spec.name])


def check_finite(name: str, array: Tensor) -> None:
    """Check that an input holds finite numbers only.

    Raises:
        NonfiniteInputError: It does not.
    """
    if not all_finite(array):
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise NonfiniteInputError(
            f"input {name!r}: {count} of {array.size} values are null, NaN or infinite; "
            "the bundle says to refuse those"
        )


def all_finite(array: Tensor) -> bool:
    """Whether an array holds no NaN and no infinity; true of what is not of floats."""
    return array.dtype.kind != "f" or floats_finite(array)


def floats_finite(array: Tensor) -> bool:
    """Whether an array of floats holds no NaN and no infinity."""
    size = array.size
    # what is quick for so many values; a sum that overflows decides nothing
    if size <= _VERY_FEW:
        if math.isfinite(sum(array.ravel().tolist())):
            return True
    elif size <= _FEW and math.isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def _check_dimensions(
    spec: TensorSpec,
    shape: Sequence[int],
    sizes: dict[str, int],
    ranges: Mapping[str, DimensionRange],
) -> None:
    for wanted, given in zip(spec.shape, shape, strict=False):
        if isinstance(wanted, int):
            continue
        if sizes.setdefault(wanted, given) != given:
            raise ShapeError(
                f"input {spec.name!r}: dimension {wanted!r} is {given} here "
                f"and {sizes[wanted]} in another input"
            )
        allowed = ranges.get(wanted) if ranges else None
        if allowed is not None and not allowed.minimum <= given <= allowed.maximum:
            raise ShapeError(
                f"input {spec.name!r}: dimension {wanted!r} is {given}, "
                f"allowed are {allowed.minimum} to {allowed.maximum}"
            )


def _names_text(missing: set[str], unknown: set[str]) -> str:
    parts = [f"input {name!r} is missing" for name in sorted(missing)]
    parts += [f"input {name[:80]!r} is not one of the model's" for name in sorted(unknown)]
    return "; ".join(parts)


def _short(words: str) -> str:
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]} ..."


def _shape_text(spec: TensorSpec) -> str:
    return f"[{', '.join(str(size) for size in spec.shape)}]"


def _depth(raw: msgspec.Raw) -> int:
    """How deep JSON text is nested, judged by the brackets it opens with."""
    opening = _OPENING.match(raw)
    depth = opening.group().count(b"[") if opening is not None else 0
    if depth > _MAX_RANK:
        raise BadRequestError(f"data are nested deeper than {_MAX_RANK} levels")
    return depth


@functools.lru_cache(maxsize=256)
def _list_type(dtype: str, depth: int, *, nulls: bool) -> Any:
    kind = np.dtype(object if dtype == "str" else dtype).kind
    element: Any = {"f": float, "i": int, "u": int, "b": bool, "O": str}[kind]
    if nulls:
        element = element | None
    for _ in range(depth):
        element = list[element]
    return element


@functools.lru_cache(maxsize=256)
def _decoder(dtype: str, depth: int, *, nulls: bool) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_list_type(dtype, depth, nulls=nulls))


def _decode(spec: TensorSpec, raw: msgspec.Raw, depth: int) -> Any:
    try:
        return _decoder(spec.dtype, depth, nulls=False).decode(raw)
    except msgspec.DecodeError as error:
        if not _has_nulls(spec):
            raise _wrong_values(spec, error) from error
    # JSON has no NaN: null is how a missing reading is written; tried second because it is rare
    try:
        return _decoder(spec.dtype, depth, nulls=True).decode(raw)
    except msgspec.DecodeError as error:
        raise _wrong_values(spec, error) from error


def _convert(spec: TensorSpec, values: object) -> Any:
    depth, probe = 0, values
    while isinstance(probe, list | tuple) and depth <= _MAX_RANK:
        depth, probe = depth + 1, probe[0] if probe else None
    try:
        return msgspec.convert(values, _list_type(spec.dtype, depth, nulls=_has_nulls(spec)))
    except msgspec.ValidationError as error:
        raise _wrong_values(spec, error) from error


def _has_nulls(spec: TensorSpec) -> bool:
    return spec.dtype.startswith("float")


def _wrong_values(spec: TensorSpec, error: Exception) -> BadRequestError:
    return BadRequestError(f"input {spec.name!r}: expected {spec.dtype} values: {error}")


def _to_array(spec: TensorSpec, values: Any) -> Tensor:
    try:
        if spec.dtype not in _SQUARES:
            return np.array(values, dtype=numpy_dtype(spec.dtype))
        wide = np.array(values, dtype=np.float64)
        if wide.size <= _FEW and np.vdot(wide, wide) < _SQUARES[spec.dtype]:
            return wide.astype(numpy_dtype(spec.dtype))
        # a float64 over the range of float32 becomes an infinity, which the finite check judges
        with np.errstate(over="ignore"):
            return wide.astype(numpy_dtype(spec.dtype))
    except OverflowError as error:
        raise _wrong_values(spec, error) from error
    except ValueError as error:
        raise ShapeError(f"input {spec.name!r}: the rows have different lengths") from error


def _cast(spec: TensorSpec, values: Tensor | np.generic) -> Tensor:
    array = np.asarray(values)
    wanted = numpy_dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    textual = spec.dtype == "str" and array.dtype.kind == "U"
    if not textual and (
        spec.dtype == "str" or not np.can_cast(array.dtype, wanted, casting="same_kind")
    ):
        raise BadRequestError(f"input {spec.name!r}: expected {spec.dtype}, given {array.dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(cast, array):
        raise BadRequestError(f"input {spec.name!r}: values outside the range of {spec.dtype}")
    return cast
