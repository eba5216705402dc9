"""``.pt2`` files of torch.export. PyTorch unpickles and evaluates parts of them: code, in a child.

torch.export.load of PyTorch 2.13 falls back to ``weights_only=False`` for the example inputs, the
weights and the constants, and evaluates the texts of symbolic sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.sources.from_torch import ANSWERED_ROWS, Caller, torch_source
from edgepack_packager.sources.model import SourceModel
from edgepack_packager.sources.torch_check import Sizes, check_sizes
from edgepack_packager.sources.torch_export import quiet, to_onnx


def load_exported(path: Path, *, digest: str) -> SourceModel:
    """Load and convert. Only ever called inside of a child.

    Raises:
        ModelSourceError: It is no exported program, or one without example inputs.
        ConversionError: It has no ONNX form.
    """
    with quiet():
        try:
            program = torch.export.load(path)
        except (KeyError, RuntimeError, ValueError, AssertionError, OSError) as error:
            raise ModelSourceError(
                f"{path.name} is no exported program that PyTorch {torch.__version__} reads: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
                code="load-failed",
            ) from error
    inputs, open_batch, axes = _inputs(program)
    caller = Caller(
        _Module(program),
        {name: tensor.dtype for name, tensor in inputs.items()},
        by_name=False,
        rows=ANSWERED_ROWS if open_batch else 1,
    )
    sample = {name: tensor.numpy() for name, tensor in inputs.items()}
    graph = to_onnx(program, list(inputs), list(caller(sample)))
    if not check_sizes(graph, caller, sample, Sizes((1, 3) if open_batch else (1,), axes)):
        raise ConversionError(
            f"{path.name}: the ONNX form gives other answers than PyTorch at some sizes that the "
            "program says it takes; export it with fixed sizes, or with torch.export's strict mode",
            code="not-faithful",
        )
    return torch_source(graph, caller, sample, digest=digest, passes=("load-exported",))


class _Module:
    """The program as a module that takes tensors in order, however the example nested them."""

    def __init__(self, program: ExportedProgram) -> None:
        self._module: Any = program.module()
        self._names = list(program.example_inputs[1]) if program.example_inputs else []

    def __call__(self, *tensors: torch.Tensor) -> Any:
        split = len(tensors) - len(self._names)
        named = dict(zip(self._names, tensors[split:], strict=True))
        return self._module(*tensors[:split], **named)


def _inputs(
    program: ExportedProgram,
) -> tuple[dict[str, torch.Tensor], bool, dict[str, dict[int, str]]]:
    """Example tensors by name, whether the first axis is open, and which others are."""
    if program.example_inputs is None:
        raise ModelSourceError(
            "this exported program has no example inputs; save it with those it was exported with",
            code="no-example",
        )
    arguments, named = program.example_inputs
    tensors = [*arguments, *named.values()]
    names = [str(name) for name in program.graph_signature.user_inputs]
    if len(names) != len(tensors) or not all(isinstance(each, torch.Tensor) for each in tensors):
        raise ConversionError(
            "the exported program takes something else than tensors; wrap the model in one whose "
            "forward takes tensors only",
            code="unsupported-input",
        )
    shapes = {
        node.name: node.meta["val"].shape for node in program.graph.nodes if node.name in names
    }
    opened = {
        name: {axis: str(size) for axis, size in enumerate(shapes[name]) if not _fixed(size)}
        for name in names
    }
    open_batch = all(0 in axes for axes in opened.values())
    others = {
        name: {axis: text for axis, text in axes.items() if axis} for name, axes in opened.items()
    }
    return dict(zip(names, tensors, strict=True)), open_batch, others


def _fixed(size: Any) -> bool:
    return isinstance(size, int)
