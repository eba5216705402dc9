"""torch.export and torch.onnx, with their chatter silenced and their errors made short."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import onnx
import torch
from torch.export import Dim, ExportedProgram

from edgepack_packager.errors import ConversionError

OPSET = 18
"""What the exporter writes without converting; given on purpose, as its default moves."""

_LOGGERS = (
    "torch.onnx", "torch.export", "torch.fx", "torch._export", "torch._dynamo", "onnxscript",
)  # fmt: skip
_UNKNOWN = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_NODE = re.compile(r"Error when translating node %(\w+) :")
_PLACE = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)')
_FIXED = re.compile(r"You marked (\w+) as dynamic but your code specialized it")


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter prints, logs and warns of: it concerns its own insides."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export_program(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    axes: Mapping[str, Mapping[int, str]],
) -> ExportedProgram:
    """Trace ``module``.

    Raises:
        ConversionError: ``fixed-axis``: its code fixes one that is to be open; else it cannot be
            traced, and the message says where.
    """
    names = {name for named in axes.values() for name in named.values()}
    sizes = {name: Dim(name) for name in sorted(names)}
    shapes = {
        name: {axis: sizes[text] for axis, text in axes.get(name, {}).items()} or None
        for name in inputs
    }
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module, (), dict(inputs), dynamic_shapes=shapes)
    except Exception as error:  # it runs the user's code, which may raise anything
        fixed = _FIXED.findall(str(error))
        if fixed:
            raise ConversionError(
                f"the model's code fixes axis {', '.join(fixed)}, which was said to be open: leave "
                "it out",
                code="fixed-axis",
            ) from error
        raise ConversionError(_trace_words(error), code="not-exportable") from error


def to_onnx(
    program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """The ONNX form of a traced program, weights inside.

    Raises:
        ConversionError: An operator has none; the message names it and where it is used.
    """
    try:
        with quiet(), torch.no_grad():
            found = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        words = _operator_words(program, error)
        raise ConversionError(words, code="unsupported-operator") from error
    if found is None:
        raise ConversionError("torch.onnx gives no model", code="not-exportable")
    graph: onnx.ModelProto = found.model_proto
    names = [item.name for item in graph.graph.output]
    if names != list(outputs):
        raise ConversionError(
            f"the exported graph has outputs {', '.join(names)}, the model {', '.join(outputs)}; "
            "return each tensor once",
            code="unsupported-output",
        )
    return graph


def _trace_words(error: Exception) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    place = _PLACE.search(text)
    where = f" at {place[1].rpartition('/')[2]}:{place[2]} ({place[3].strip()})" if place else ""
    return (
        f"torch.export cannot trace this model{where}: {first} "
        "What branches on values of tensors must use torch.where or torch.cond"
    )


def _operator_words(program: ExportedProgram, error: BaseException) -> str:
    chain = _causes(error)
    operator = next((match[1] for text in chain if (match := _UNKNOWN.search(text))), None)
    node = next((match[1] for text in chain if (match := _NODE.search(text))), None)
    if operator is None:
        return f"torch.onnx cannot convert this model: {chain[-1].splitlines()[0]}"
    where = _line_of(program, operator)
    return (
        f"operator {operator} (node {node}{where}) has no ONNX form: replace it in the model by "
        "operators that have one, or move it out of the model, into --preprocess or --postprocess"
    )


def _causes(error: BaseException | None) -> list[str]:
    texts = []
    while error is not None:
        texts.append(str(error) or type(error).__name__)
        error = error.__cause__
    return texts


def _line_of(program: ExportedProgram, operator: str) -> str:
    """Where the model's code uses ``operator``, or what it was decomposed from."""
    nodes: Any = program.graph.nodes
    name = operator.rpartition(".")[2]
    traces = [str(node.meta.get("stack_trace") or "") for node in nodes if name in str(node.target)]
    places = [match for trace in traces for match in _PLACE.finditer(trace)]
    if not places:
        return ""
    last = places[-1]
    return f", {last[1].rpartition('/')[2]}:{last[2]}: {last[3].strip()}"
