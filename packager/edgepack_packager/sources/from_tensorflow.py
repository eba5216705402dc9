"""Keras, SavedModel and TFLite models through tf2onnx. Only ever called inside of a child.

A SavedModel's graph may read and write files when it runs, TensorFlow starts many threads and
prints much: the child is shut in where that is possible.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.graphs.clean import all_nodes
from edgepack_packager.graphs.running import chunks
from edgepack_packager.sources.given import join_rows
from edgepack_packager.sources.model import Answer, SourceModel
from edgepack_packager.sources.settling import settle_names

OPSET = 17
ANSWERED_ROWS = 64
SERVING = "serving_default"
SAFE_KERAS = (3, 11, 3)
"""Before it, safe_mode was not heeded for .h5 files (CVE-2025-9905)."""

_UNSUPPORTED = re.compile(r"Tensorflow op \[([^:\]]+): ([^\]]+)\] is not supported")
_CUSTOM = re.compile(r"[Cc]ustom op: (\w+)|custom opcode[: ]+(\w+)")
_PLAIN_NAME = re.compile(r"[^A-Za-z0-9_.\-]")


def load_keras(path: Path, *, digest: str) -> SourceModel:
    """Load a ``.keras`` or ``.h5`` file without the code that may be in it, and convert it.

    Raises:
        ModelSourceError: Unreadable, or it holds code, such as a Lambda layer.
        ConversionError: It has no ONNX form.
    """
    _one_thread()
    if _version(keras.__version__) < SAFE_KERAS:
        raise ModelSourceError(
            f"reading {path.name} safely needs Keras 3.11.3 or newer, this is {keras.__version__}",
            code="missing-extra",
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, AttributeError, ImportError) as error:
        raise _keras_refusal(path, str(error)) from error
    return convert_keras(model, digest=digest, passes=("load-keras",))


def convert_keras(model: Any, *, digest: str, passes: Sequence[str]) -> SourceModel:
    """Convert a built Keras model.

    Raises:
        ConversionError: It is not built, or has no ONNX form.
    """
    if not getattr(model, "inputs", None):
        raise ConversionError(
            f"this {type(model).__name__} has no fixed inputs; call it once on an example and save "
            "it with model.export('folder'), and build that folder",
            code="not-built",
        )
    specs = [tf.TensorSpec(each.shape, each.dtype, name=each.name) for each in model.inputs]
    names = _keras_outputs(model)

    def call(*tensors: Any) -> Any:
        found = model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)
        return dict(zip(names, tf.nest.flatten(found), strict=True))

    return _converted(call, specs, digest=digest, passes=passes)


def load_saved_model(path: Path, *, digest: str) -> SourceModel:
    """Load a SavedModel folder and convert its signature for serving.

    Raises:
        ModelSourceError: Unreadable, or without a signature.
        ConversionError: It has no ONNX form.
    """
    _one_thread()
    try:
        model = tf.saved_model.load(str(path))
    except (ValueError, OSError, KeyError, AttributeError, tf.errors.OpError) as error:
        raise ModelSourceError(f"{path.name} is no readable SavedModel: {error}") from error
    signature = _signature(dict(model.signatures), path.name)
    inputs: dict[str, Any] = signature.structured_input_signature[1]
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()]

    def call(*tensors: Any) -> Any:
        return signature(**dict(zip(inputs, tensors, strict=True)))

    return _converted(call, specs, digest=digest, passes=("load-savedmodel",), keep=model)


def load_tflite(path: Path, *, digest: str) -> SourceModel:
    """Load a ``.tflite`` file and convert it.

    Raises:
        ModelSourceError: Unreadable.
        ConversionError: It has custom operators, or no ONNX form.
    """
    interpreter = _interpreter(path)
    graph = _tf2onnx(lambda: tf2onnx.convert.from_tflite(str(path), opset=OPSET)[0])
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    names = _tidy_names(graph)
    quantized = sorted({np.dtype(each["dtype"]).name for each in interpreter.get_tensor_details()})
    small = [kind for kind in quantized if kind in {"int8", "uint8", "int16"}]
    warning = (
        f"this model is quantized already ({', '.join(small)}): it stays as it is, and figures "
        "compare with it and not with the model that it was made from"
    )
    return SourceModel(
        graph=graph,
        digest=digest,
        framework=f"tensorflow lite {tf.__version__}",
        task=None,
        features=None,
        classes=None,
        answer=_tflite_answer(interpreter, inputs, outputs, names),
        tools=_tools(),
        passes=("load-tflite", "tf2onnx"),
        warnings=(warning,) if small and _has_scales(interpreter) else (),
    )


def _converted(
    call: Callable[..., Any],
    specs: Sequence[Any],
    *,
    digest: str,
    passes: Sequence[str],
    keep: Any = None,
) -> SourceModel:
    """Trace ``call``, convert it, and answer by it; ``keep`` owns its weights."""
    function = tf.function(call, input_signature=list(specs))
    graph = _tf2onnx(
        lambda: tf2onnx.convert.from_function(function, input_signature=list(specs), opset=OPSET)[0]
    )
    types = {spec.name: spec.dtype for spec in specs}
    outputs = [item.name for item in graph.graph.output]

    def answer(feeds: Feeds, keep: Any = keep) -> Feeds:  # noqa: ARG001 - holds the weights
        parts = []
        for part in chunks(feeds, ANSWERED_ROWS):
            found = function(*(tf.constant(part[name], dtype=kind) for name, kind in types.items()))
            parts.append({name: _array(found[name]) for name in outputs})
        return join_rows(parts)

    return SourceModel(
        graph=graph,
        digest=digest,
        framework=f"tensorflow {tf.__version__}",
        task=None,
        features=None,
        classes=None,
        answer=answer,
        tools=_tools(),
        passes=(*passes, "tf2onnx"),
    )


def _tf2onnx(convert: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    try:
        graph = convert()
    except Exception as error:  # tf2onnx raises bare Exceptions, of any kind
        raise ConversionError(_words(str(error)), code="not-convertible") from error
    settle_names(graph.graph)
    # what it has no form for, it only logs, and leaves in the graph
    foreign = sorted(
        {
            f"{node.op_type} (node {node.name})"
            for node in all_nodes(graph.graph)
            if not onnx.defs.has(node.op_type, node.domain)
        }
    )
    if foreign:
        raise ConversionError(
            f"operator {', '.join(foreign[:5])} has no ONNX form: replace it in the model, or move "
            "it out of the model, into --preprocess or --postprocess",
            code="unsupported-operator",
        )
    return graph


def _words(text: str) -> str:
    found = _UNSUPPORTED.findall(text)
    if found:
        named = ", ".join(f"{operator} (node {node})" for node, operator in found[:5])
        return f"operator {named} has no ONNX form: replace it in the model"
    return f"tf2onnx cannot convert this model: {(text.strip() or 'no reason given')[:500]}"


def _signature(signatures: Mapping[str, Any], what: str) -> Any:
    if SERVING in signatures:
        return signatures[SERVING]
    if len(signatures) == 1:
        return next(iter(signatures.values()))
    raise ModelSourceError(
        f"{what} has signatures {', '.join(sorted(signatures)) or 'none'}; save it with one, or "
        f"with one called {SERVING}: model.export('folder')",
        code="no-signature",
    )


def _interpreter(path: Path) -> Any:
    try:
        interpreter = tf.lite.Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        custom = [one or two for one, two in _CUSTOM.findall(str(error))]
        if custom:
            raise ConversionError(
                f"custom operator {', '.join(custom)} has no ONNX form: convert the model without "
                "it, or move it out of the model",
                code="unsupported-operator",
            ) from error
        raise ModelSourceError(f"{path.name} is no readable TFLite file: {error}") from error
    return interpreter


def _tflite_answer(
    interpreter: Any, inputs: Sequence[Any], outputs: Sequence[Any], names: Mapping[str, str]
) -> Answer:
    def answer(feeds: Feeds) -> Feeds:
        parts = []
        # the interpreter's batch is the file's, and its shapes inside may depend on it
        for part in chunks(feeds, int(inputs[0]["shape"][0])):
            for each in inputs:
                rows = np.asarray(part[names[each["name"]]]).astype(each["dtype"])
                interpreter.set_tensor(each["index"], rows.reshape(each["shape"]))
            interpreter.invoke()
            parts.append(
                {names[each["name"]]: interpreter.get_tensor(each["index"]) for each in outputs}
            )
        return join_rows(parts)

    return answer


def _tidy_names(graph: onnx.ModelProto) -> dict[str, str]:
    """Rename inputs and outputs to plain names; the new ones by the old ones."""
    names: dict[str, str] = {}
    for item in (*graph.graph.input, *graph.graph.output):
        plain = item.name.removeprefix(f"{SERVING}_").partition(":")[0]
        plain = _PLAIN_NAME.sub("_", plain.rpartition("/")[2]) or "value"
        while plain in names.values():
            plain += "_"
        names[item.name] = plain
        item.name = plain
    for node in graph.graph.node:
        for texts in (node.input, node.output):
            for place, text in enumerate(texts):
                texts[place] = names.get(text, text)
    return names


def _has_scales(interpreter: Any) -> bool:
    return any(
        len(each["quantization_parameters"]["scales"]) for each in interpreter.get_tensor_details()
    )


def _keras_outputs(model: Any) -> list[str]:
    outputs = tf.nest.flatten(model.outputs)
    named = getattr(model, "output_names", None)
    if named is not None and len(named) == len(outputs):
        return list(named)
    layers = getattr(model, "layers", [])
    if len(outputs) == 1 and layers:
        return [str(layers[-1].name)]
    return [f"output_{place}" for place in range(len(outputs))]


def _keras_refusal(path: Path, words: str) -> ModelSourceError:
    if "Lambda" in words or "safe_mode" in words or "unsafe" in words:
        return ModelSourceError(
            f"{path.name} holds Python code (a Lambda layer, or the like), which is never run: "
            "replace it by layers of Keras, or export the model with model.export('folder') and "
            "build that folder",
            code="code-inside",
        )
    return ModelSourceError(f"{path.name} is no readable Keras model: {words[:500]}")


def _array(tensor: Any) -> Array:
    return np.asarray(tensor.numpy())


def _one_thread() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _tools() -> dict[str, str]:
    return {
        "tensorflow": str(tf.__version__),
        "keras": str(keras.__version__),
        "tf2onnx": importlib.metadata.version("tf2onnx"),
    }
