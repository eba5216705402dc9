"""onnxruntime's quantizer, held at arm's length: quiet, and with one error of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

# importing this after the session module, which turns the library's usage reports off
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.clean import clean_passes
from edgepack_packager.graphs.passes import run_passes
from edgepack_packager.graphs.running import save_model

_RAISED = (
    AssertionError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    ort_state.Fail,
    ort_state.InvalidGraph,
    ort_state.NotImplemented,
)
"""What the library raises, without a class of its own, for graphs it was not written for."""


class QuantizerError(ConversionError):
    """The quantizer does not cope with a graph; its other candidates are not touched."""

    default_code = "quantizer"


@contextmanager
def foreseen() -> Iterator[None]:
    """Turn what the library raises into one error.

    Raises:
        QuantizerError: The library failed on this graph.
    """
    try:
        yield
    except _RAISED as error:
        raise QuantizerError(f"the quantizer fails on this graph: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library from logging advice about steps that were already taken."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to work on: the library changes what it is given."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def recleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """What the library made, in the form that every graph of a bundle has."""
    return run_passes(model, clean_passes())[0]


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants, batch normalisation and biases, as the session would while loading."""
    with TemporaryDirectory(prefix="edgepack-") as folder:
        place = Path(folder)
        save_model(model, place)
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(place / "fused.onnx")
        options.log_severity_level = 4
        with foreseen():
            InferenceSession(str(place / "model.onnx"), options, providers=["CPUExecutionProvider"])
        return recleaned(onnx.load(place / "fused.onnx"))
