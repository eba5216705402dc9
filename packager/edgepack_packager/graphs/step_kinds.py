"""The steps that a file for pre- or postprocessing may have, and their ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgepack_contract.description import DType
from edgepack_packager.errors import RecipeError

Floats = float | list[float]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=8192)]
OpenSize = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
MAX_NUMBERS = 4096
"""Numbers that one step may hold."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor on its way: its name in the graph, numpy's name of its type, and its rank."""

    tensor: str
    dtype: str
    rank: int


@dataclass(slots=True)
class Sheet:
    """Nodes and constants as they are written down, all names beginning with ``prefix``."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """Write a node; the name of its first output, which others follow with ``-1``, ``-2``."""
        name = f"{self.prefix}{len(self.nodes)}-{kind.lower()}"
        names = [name, *(f"{name}-{place}" for place in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: str) -> str:
        """Write a constant; its name."""
        name = f"{self.prefix}c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def as_float(self, value: Value) -> Value:
        """The value as a float: as it is, or cast to float32."""
        if value.dtype.startswith("float"):
            return value
        return self.cast(value, "float32")

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another type."""
        kind = tensor_type(dtype)
        return Value(self.add("Cast", [value.tensor], to=kind), dtype, value.rank)


class _Any(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    """A step, told by its ``op``."""


class _Step(_Any, frozen=True, kw_only=True):
    """A step that makes one value of another.

    Attributes:
        input: The value it works on; needed where there are several.
        output: What it gives is called; without it, it takes the place of what it works on.
    """

    input: str | None = None
    output: str | None = None

    def write(self, sheet: Sheet, value: Value) -> Value:
        """Write the nodes of the step.

        Raises:
            RecipeError: The step does not fit the value.
        """
        return self._write(sheet, value)

    def _write(self, sheet: Sheet, value: Value) -> Value:
        raise NotImplementedError


class Cast(_Step, frozen=True, kw_only=True, tag="cast"):
    """Another type of numbers."""

    to: DType

    def _write(self, sheet: Sheet, value: Value) -> Value:
        return sheet.cast(value, self.to)


class Scale(_Step, frozen=True, kw_only=True, tag="scale"):
    """Times a factor; what is no float becomes float32, as in the steps below."""

    factor: float

    def _write(self, sheet: Sheet, value: Value) -> Value:
        return _combine(sheet, "Mul", value, self.factor)


class Offset(_Step, frozen=True, kw_only=True, tag="offset"):
    """Plus a number."""

    by: float

    def _write(self, sheet: Sheet, value: Value) -> Value:
        return _combine(sheet, "Add", value, self.by)


class Normalize(_Step, frozen=True, kw_only=True, tag="normalize"):
    """Minus a mean, divided by a deviation: one number, or one for each channel on ``axis``."""

    mean: Floats
    std: Floats
    axis: int = 1

    def _write(self, sheet: Sheet, value: Value) -> Value:
        if 0 in np.atleast_1d(np.asarray(self.std)):
            raise RecipeError("normalize: a deviation is 0", code="bad-step")
        shifted = _combine(sheet, "Sub", value, self.mean, self.axis)
        return _combine(sheet, "Div", shifted, self.std, self.axis)


class Clip(_Step, frozen=True, kw_only=True, tag="clip"):
    """Not under ``min`` and not over ``max``."""

    min: float | None = None
    max: float | None = None

    def _write(self, sheet: Sheet, value: Value) -> Value:
        value = sheet.as_float(value)
        ends = [
            "" if end is None else sheet.constant(end, value.dtype) for end in (self.min, self.max)
        ]
        return Value(sheet.add("Clip", [value.tensor, *ends]), value.dtype, value.rank)


class Log(_Step, frozen=True, kw_only=True, tag="log"):
    """The natural logarithm of the value plus ``plus``."""

    plus: float = 0.0

    def _write(self, sheet: Sheet, value: Value) -> Value:
        value = _combine(sheet, "Add", value, self.plus) if self.plus else sheet.as_float(value)
        return Value(sheet.add("Log", [value.tensor]), value.dtype, value.rank)


class Resize(_Step, frozen=True, kw_only=True, tag="resize"):
    """Images to a height and width, as PyTorch's ``interpolate`` does it without anti-aliasing.

    ``linear`` is bilinear with half-pixel centres, ``nearest`` takes the pixel to the upper left.
    """

    sizes: Annotated[list[Pixels], msgspec.Meta(min_length=2, max_length=2)]
    mode: Literal["linear", "nearest"] = "linear"
    layout: Literal["nchw", "nhwc"] = "nchw"

    def _write(self, sheet: Sheet, value: Value) -> Value:
        _need_rank(self, value, 4)
        value = sheet.as_float(value)
        shape = sheet.add("Shape", [value.tensor])
        wanted = sheet.constant(self.sizes, "int64")
        if self.layout == "nchw":
            parts = [_part(sheet, shape, 0, 2), wanted]
        else:
            parts = [_part(sheet, shape, 0, 1), wanted, _part(sheet, shape, 3, 4)]
        sizes = sheet.add("Concat", parts, axis=0)
        centres = "half_pixel" if self.mode == "linear" else "asymmetric"
        name = sheet.add(
            "Resize", [value.tensor, "", "", sizes],
            mode=self.mode, coordinate_transformation_mode=centres, nearest_mode="floor",
        )  # fmt: skip
        return Value(name, value.dtype, value.rank)


class Layout(_Step, frozen=True, kw_only=True, tag="layout"):
    """Channels first or last."""

    change: Literal["nhwc-nchw", "nchw-nhwc"]

    def _write(self, sheet: Sheet, value: Value) -> Value:
        _need_rank(self, value, 4)
        order = [0, 3, 1, 2] if self.change == "nhwc-nchw" else [0, 2, 3, 1]
        name = sheet.add("Transpose", [value.tensor], perm=order)
        return Value(name, value.dtype, value.rank)


class Reshape(_Step, frozen=True, kw_only=True, tag="reshape"):
    """Each row in another shape; one size may be -1."""

    shape: Annotated[list[OpenSize], msgspec.Meta(max_length=15)]

    def _write(self, sheet: Sheet, value: Value) -> Value:
        if self.shape.count(-1) > 1 or 0 in self.shape:
            raise RecipeError("reshape: at most one size is -1, and none is 0", code="bad-step")
        sizes = sheet.constant([0, *self.shape], "int64")
        name = sheet.add("Reshape", [value.tensor, sizes])
        return Value(name, value.dtype, 1 + len(self.shape))


class OneHot(_Step, frozen=True, kw_only=True, tag="one-hot"):
    """Whole numbers below ``depth`` as rows of zeros and a one."""

    depth: Annotated[int, msgspec.Meta(ge=2, le=65536)]

    def _write(self, sheet: Sheet, value: Value) -> Value:
        whole = sheet.cast(value, "int64")
        depth = sheet.constant(self.depth, "int64")
        name = sheet.add(
            "OneHot", [whole.tensor, depth, sheet.constant([0, 1], "float32")], axis=-1
        )
        return Value(name, "float32", value.rank + 1)


class Softmax(_Step, frozen=True, kw_only=True, tag="softmax"):
    """Shares of one along ``axis``."""

    axis: int = -1

    def _write(self, sheet: Sheet, value: Value) -> Value:
        value = sheet.as_float(value)
        return Value(sheet.add("Softmax", [value.tensor], axis=self.axis), value.dtype, value.rank)


class Sigmoid(_Step, frozen=True, kw_only=True, tag="sigmoid"):
    """The logistic function."""

    def _write(self, sheet: Sheet, value: Value) -> Value:
        value = sheet.as_float(value)
        return Value(sheet.add("Sigmoid", [value.tensor]), value.dtype, value.rank)


class ArgMax(_Step, frozen=True, kw_only=True, tag="argmax"):
    """The place of the largest value along ``axis``."""

    axis: int = -1

    def _write(self, sheet: Sheet, value: Value) -> Value:
        name = sheet.add("ArgMax", [value.tensor], axis=self.axis, keepdims=0)
        return Value(name, "int64", value.rank - 1)


class TopK(_Step, frozen=True, kw_only=True, tag="top-k"):
    """The ``k`` largest values of the last dimension; ``places`` is the output with where."""

    k: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    places: str

    def _write(self, sheet: Sheet, value: Value) -> Value:
        name = sheet.add("TopK", [value.tensor, sheet.constant([self.k], "int64")], 2, axis=-1)
        return Value(name, value.dtype, value.rank)


class Threshold(_Step, frozen=True, kw_only=True, tag="threshold"):
    """1 where the value is at least ``at``, else 0."""

    at: float

    def _write(self, sheet: Sheet, value: Value) -> Value:
        value = sheet.as_float(value)
        least = sheet.constant(self.at, value.dtype)
        name = sheet.add("GreaterOrEqual", [value.tensor, least])
        return sheet.cast(Value(name, "bool", value.rank), "int64")


class Constant(_Any, frozen=True, kw_only=True, tag="constant"):
    """A value that is always the same, such as a sampling rate that a model takes as an input."""

    output: str
    value: float | list[float]
    dtype: DType = "float32"

    def made(self, sheet: Sheet) -> Value:
        """Write it down."""
        held = np.asarray(self.value, dtype=self.dtype)
        tensor = numpy_helper.from_array(held, "value")
        return Value(sheet.add("Constant", [], value=tensor), self.dtype, held.ndim)


class Select(_Any, frozen=True, kw_only=True, tag="select"):
    """Keep these values only, in this order."""

    outputs: Annotated[list[str], msgspec.Meta(min_length=1, max_length=1024)]


Working = (
    Cast | Scale | Offset | Normalize | Clip | Log | Resize | Layout | Reshape | OneHot | Softmax
    | Sigmoid | ArgMax | TopK | Threshold
)  # fmt: skip
Step = Working | Constant | Select


def _combine(sheet: Sheet, kind: str, value: Value, numbers: Floats, axis: int = 1) -> Value:
    value = sheet.as_float(value)
    held = np.asarray(numbers, dtype=value.dtype)
    if held.size > MAX_NUMBERS or not np.isfinite(held).all():
        raise RecipeError(
            f"a step holds over {MAX_NUMBERS} numbers, or one that is not finite", code="bad-step"
        )
    if held.ndim:
        place = axis % value.rank if -value.rank <= axis < value.rank else -1
        if place < 1:
            raise RecipeError(
                f"axis {axis} is none of the {value.rank - 1} dimensions of a row", code="bad-step"
            )
        held = held.reshape([-1, *[1] * (value.rank - place - 1)])
    name = sheet.add(kind, [value.tensor, sheet.constant(held, value.dtype)])
    return Value(name, value.dtype, value.rank)


def _part(sheet: Sheet, shape: str, start: int, end: int) -> str:
    ends = [sheet.constant([place], "int64") for place in (start, end)]
    return sheet.add("Slice", [shape, *ends])


def _need_rank(step: _Step, value: Value, rank: int) -> None:
    if value.rank != rank:
        op = type(step).__struct_config__.tag
        raise RecipeError(
            f"{op} works on images of {rank} dimensions with the rows, here are {value.rank}",
            code="bad-step",
        )


def tensor_type(dtype: str) -> int:
    """ONNX's number of a type of numpy."""
    if dtype == "str":
        return int(onnx.TensorProto.STRING)
    if dtype == "bfloat16":
        return int(onnx.TensorProto.BFLOAT16)
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def numpy_name(kind: int) -> str:
    """Give numpy's name of a type of ONNX, ``str`` for texts."""
    if kind == onnx.TensorProto.STRING:
        return "str"
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name
