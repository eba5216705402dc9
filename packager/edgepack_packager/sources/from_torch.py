"""PyTorch modules: exported with an open batch, and run again at other sizes than the example's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.graphs.clean import BATCH
from edgepack_packager.sources.given import join_rows
from edgepack_packager.sources.model import Answer, SourceModel
from edgepack_packager.sources.objects import Axes
from edgepack_packager.sources.torch_check import Sizes, check_sizes
from edgepack_packager.sources.torch_export import export_program, quiet, to_onnx

ANSWERED_ROWS = 64

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls a module with arrays by name and gives its outputs by name.

    Attributes:
        call: The module in its evaluation mode, or what behaves like it.
        types: The type that each input takes.
        by_name: Whether inputs are given by name, or in order.
        rows: The most rows of one call.
    """

    call: Any
    types: Mapping[str, torch.dtype]
    by_name: bool
    rows: int

    def __call__(self, feeds: Feeds) -> Feeds:
        """The outputs of all rows, computed on one thread: more may add in another order."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            total = len(next(iter(feeds.values())))
            starts = range(0, total, self.rows)
            return join_rows([self._part(feeds, start) for start in starts])
        finally:
            torch.set_num_threads(threads)

    def _part(self, feeds: Feeds, start: int) -> Feeds:
        tensors = {
            name: torch.from_numpy(np.array(feeds[name][start : start + self.rows])).to(kind)
            for name, kind in self.types.items()
        }
        with torch.no_grad():
            found = self.call(**tensors) if self.by_name else self.call(*tensors.values())
        return {name: value.numpy() for name, value in flat_outputs(found).items()}


def convert_module(
    module: torch.nn.Module, example: Any, *, digest: str, passes: Sequence[str], axes: Axes
) -> SourceModel:
    """Export a module.

    Args:
        module: The model; it is put into its evaluation mode.
        example: A tensor, a tuple of tensors in the order of ``forward``'s parameters, or tensors
            by their names. The first axis of each holds rows.
        digest: Of what it came from.
        passes: What was done to get it.
        axes: The axes whose length is open besides the first.

    Raises:
        ModelSourceError: The example does not fit ``forward``.
        ConversionError: It has no ONNX form.
    """
    module = module.eval().to("cpu")
    inputs = named_inputs(module, example)
    _check_axes(inputs, axes)
    types = {name: tensor.dtype for name, tensor in inputs.items()}
    caller = Caller(module, types, by_name=True, rows=ANSWERED_ROWS)
    sample = {name: tensor.numpy() for name, tensor in inputs.items()}
    outputs = _outputs(caller, sample)
    shapes = {name: {0: BATCH, **axes.get(name, {})} for name in inputs}
    parts = _Parts(module, inputs, caller, sample, list(outputs), axes)
    try:
        # an example of one row would be taken for a size that never changes
        graph = parts.export(shapes, rows=2, tried=(1, 3))
        return torch_source(graph, caller, sample, digest=digest, passes=passes)
    except ConversionError as error:
        if error.code not in {"fixed-axis", "not-exportable", "not-faithful"}:
            raise
    graph = parts.export(axes, rows=1, tried=(1,))
    source = torch_source(graph, replace(caller, rows=1), sample, digest=digest, passes=passes)
    warning = "the model's code fixes the number of rows; it is packed for one row at a time"
    return replace(source, warnings=(warning,))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is exported, at one size or another."""

    module: torch.nn.Module
    inputs: Tensors
    caller: Caller
    sample: Feeds
    outputs: list[str]
    axes: Axes

    def export(self, shapes: Axes, *, rows: int, tried: tuple[int, ...]) -> onnx.ModelProto:
        """The graph, if it answers as the module does with each of the ``tried`` rows."""
        program = export_program(self.module, _with_rows(self.inputs, rows), shapes)
        graph = to_onnx(program, list(self.inputs), self.outputs)
        caller = replace(self.caller, rows=max(tried))
        if not check_sizes(graph, caller, self.sample, Sizes(rows=tried, axes=self.axes)):
            raise ConversionError(
                "the exported graph gives other answers than PyTorch", code="not-faithful"
            )
        return graph


def named_inputs(module: torch.nn.Module, example: Any) -> Tensors:
    """The example's tensors by the names of ``forward``'s parameters.

    Raises:
        ModelSourceError: It does not fit them, or holds something else than tensors with rows.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    names = [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if isinstance(example, Mapping):
        found = dict(example)
    else:
        values = tuple(example) if isinstance(example, (tuple, list)) else (example,)
        if len(values) > len(names):
            raise _unfit(f"it has {len(values)} tensors, forward takes {', '.join(names)}")
        found = dict(zip(names, values, strict=False))
    odd = sorted(name for name, value in found.items() if not isinstance(value, torch.Tensor))
    if odd or not found:
        raise _unfit(f"{', '.join(odd) or 'nothing'} in it is no tensor")
    flat = sorted(name for name, value in found.items() if value.ndim == 0 or len(value) == 0)
    if flat:
        raise _unfit(f"{', '.join(flat)} has no rows along its first axis")
    return {name: value.detach().to("cpu") for name, value in found.items()}


def example_from(module: torch.nn.Module, columns: Mapping[str, Array]) -> Tensors:
    """An example from rows of the data: by the names of parameters, else all side by side.

    Raises:
        ModelSourceError: There are no rows, or they do not fit.
    """
    names = list(inspect.signature(module.forward).parameters)
    known = {name: columns[name] for name in names if name in columns}
    if not known and columns:
        arrays = list(columns.values())
        known = {names[0]: arrays[0] if len(arrays) == 1 else np.column_stack(arrays)}
    if not known or any(array.dtype.kind not in "biuf" for array in known.values()):
        raise ModelSourceError(
            "a PyTorch module is exported by running it on an example: give data whose arrays "
            f"have the names of its parameters ({', '.join(names)}), or write a function that "
            "returns the model and an example, and build module:function",
            code="no-example",
        )
    return {name: torch.from_numpy(_plain(array)) for name, array in known.items()}


def flat_outputs(found: Any, name: str = "") -> Tensors:
    """Outputs by name: keys of dictionaries, fields of named tuples, else their places.

    Raises:
        ConversionError: One is no tensor.
    """
    if isinstance(found, torch.Tensor):
        return {name or "output": found}
    if found is None:
        return {}
    if isinstance(found, Mapping):
        parts = [(str(key), value) for key, value in found.items()]
    elif isinstance(found, (tuple, list)):
        prefix = "" if name else "output_"
        fields = getattr(found, "_fields", None) or [f"{prefix}{i}" for i in range(len(found))]
        parts = list(zip(fields, found, strict=True))
    else:
        raise ConversionError(
            f"{name or 'the output'} is a {type(found).__name__}; the model must return tensors, "
            "alone, in a tuple or in a dictionary",
            code="unsupported-output",
        )
    flat: Tensors = {}
    for key, value in parts:
        flat.update(flat_outputs(value, f"{name}_{key}" if name else key))
    return flat


def torch_tools() -> dict[str, str]:
    """Versions of what exports."""
    import onnxscript  # noqa: PLC0415 - only its version

    return {"torch": str(torch.__version__), "onnxscript": str(onnxscript.__version__)}


def torch_source(
    graph: onnx.ModelProto, caller: Answer, sample: Feeds, *, digest: str, passes: Sequence[str]
) -> SourceModel:
    """A source of PyTorch; ``passes`` led to what was exported to ``graph``."""
    return SourceModel(
        graph=graph,
        digest=digest,
        framework=f"torch {torch.__version__}",
        task=None,
        features=None,
        classes=None,
        answer=caller,
        tools=torch_tools(),
        passes=(*passes, "torch-export"),
        sample=sample,
    )


def _outputs(caller: Caller, sample: Feeds) -> Feeds:
    try:
        with quiet():
            return caller(sample)
    except ConversionError:
        raise
    except Exception as error:  # the model is the user's code, which may raise anything
        raise ModelSourceError(
            f"the model fails on its example: {type(error).__name__}: {error}", code="bad-example"
        ) from error


def _check_axes(inputs: Tensors, axes: Axes) -> None:
    for name, named in axes.items():
        if name not in inputs:
            raise _unfit(f"axes are given for {name}, which is not in it")
        odd = [axis for axis in named if not 0 < axis < inputs[name].ndim]
        if odd:
            raise _unfit(f"{name} has no axis {odd[0]} besides its rows")


def _with_rows(inputs: Tensors, rows: int) -> Tensors:
    return {
        name: torch.cat([tensor] * rows)[:rows] if len(tensor) < rows else tensor[:rows]
        for name, tensor in inputs.items()
    }


def _plain(array: Array) -> Array:
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _unfit(words: str) -> ModelSourceError:
    return ModelSourceError(f"the example input does not fit: {words}", code="bad-example")
