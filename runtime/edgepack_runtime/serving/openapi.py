"""``/openapi.json``: what this device answers, exactly enough that tools can hold it to it.

Source: spec.openapis.org/oas/v3.1.0. It names the models that are here now, with examples of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgepack_contract import __version__
from edgepack_contract.description import Description, TensorSpec
from edgepack_runtime.serving.datatypes import DATATYPES, datatype_of
from edgepack_runtime.serving.instances import column_names
from edgepack_runtime.serving.openapi_schemas import ROW, SCHEMAS, Schema, listed, ref
from edgepack_runtime.serving.slot import Slot

ERRORS = {
    400: "The request is not what is expected; the words say what was, and what was given.",
    401: "The token of this device is missing.",
    403: "Not for pages in a browser.",
    404: "No model or version of that name.",
    408: "The body did not arrive in time.",
    411: "The body came without a length.",
    413: "The body is too large.",
    415: "The body is packed in a way that is not understood; gzip and deflate are.",
    429: "Too many requests wait for the model; try again after Retry-After seconds.",
    500: "The model failed.",
    503: "No model can answer right now; try again after Retry-After seconds.",
    504: "The model did not answer in time.",
}
"""Every status of an error, and what it says."""

_ASKED = (400, 401, 404, 503)
_PREDICTED = (400, 401, 404, 408, 411, 413, 415, 429, 500, 503, 504)
_ORDERED = (400, 401, 403, 404, 408, 413, 415, 503)

_INFER_TEXT = (
    "Tensors as JSON, or behind the JSON as bytes: Inference-Header-Content-Length is then the "
    "length of the JSON. With a length of 0 the body is the one input of the model, and the answer "
    "is bytes too."
)
_JSON_BYTES = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of the body that are JSON, when tensors follow as bytes.",
    "schema": {"type": "integer", "minimum": 0},
}
_KEY = {
    "name": "X-Edgepack-Key",
    "in": "header",
    "description": "Whom or what this is about: the same key gets the same model of a split.",
    "schema": {"type": "string"},
}
_MOST_SHOWN = 256
_JSON, _BYTES = "application/json", "application/octet-stream"


def document(slots: Mapping[str, Slot]) -> dict[str, Any]:
    """The OpenAPI document of a device with these slots."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgepack",
            "version": __version__,
            "description": (
                "The models of this device, by the Open Inference Protocol (/v2), the protocol of "
                "KServe (/v1) and plain paths."
            ),
        },
        "paths": dict(_paths(slots)),
        "components": {
            "schemas": SCHEMAS,
            "responses": {
                f"Error{status}": {
                    "description": text,
                    "content": {_JSON: {"schema": ref("Error")}},
                }
                for status, text in ERRORS.items()
            },
        },
    }


def _paths(slots: Mapping[str, Slot]) -> Iterator[tuple[str, Any]]:
    model = _model_parameter(slots)
    yield from _plain_paths(slots)
    yield "/v1/models", _get("The models of this device", "Models")
    yield "/v1/models/{model_name}", _get("Whether a model answers", "ModelReady", model)
    yield (
        "/v1/models/{model_name}:predict",
        _predict("Predictions for rows", "Instances", "Predictions", _rows(slots), model),
    )
    yield from _v2_paths(slots, model)
    for verb, text in (
        ("load", "Let an unloaded model answer again; brings no model in."),
        ("unload", "Let a model answer 503 until it is loaded again; it stays installed."),
    ):
        yield f"/v2/repository/models/{{model_name}}/{verb}", _order(text, "ChangeRequest", model)


def _plain_paths(slots: Mapping[str, Slot]) -> Iterator[tuple[str, Any]]:
    rows = _rows(slots)
    batch = {name: {"value": example["value"]["instances"]} for name, example in rows.items()}
    one = {name: {"value": example["value"][0]} for name, example in batch.items()}
    yield "/predict", _predict("A prediction for one row", ROW, _either("Prediction"), one)
    yield (
        "/predict/batch",
        _predict("Predictions for rows", listed(ref("Row")), "Predictions", batch),
    )
    yield "/model/info", _get("What the only model takes and gives", "ModelInfo")
    yield "/health", _get("What this device serves, and how it is", "Health", errors=(401,))
    yield "/ready", _get("Whether every model answers", "Ready", errors=(401,), unready=True)
    for path, text, kind in (
        ("/metrics", "Metrics for Prometheus", "text/plain"),
        ("/", "Status, for people", "text/html"),
        ("/docs", "This document, for people", "text/html"),
    ):
        yield path, {"get": _operation(text, {kind: {"schema": {"type": "string"}}}, (401,))}
    content = {_JSON: {"schema": {"type": "object"}}}
    yield "/openapi.json", {"get": _operation("This document", content, (401,))}


def _v2_paths(slots: Mapping[str, Slot], model: Schema) -> Iterator[tuple[str, Any]]:
    version = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[!-.0-~]+$"},
        "examples": {
            name: {"value": slot.active.version} for name, slot in slots.items() if slot.active
        },
    }
    yield "/v2", _get("The server and its extensions", "Server", errors=(401,))
    yield "/v2/health/live", _get("Whether the server answers", "Live", errors=())
    yield "/v2/health/ready", _get("Whether every model answers", "Ready", errors=(), unready=True)
    yield "/v2/models/stats", _get("Statistics of every model", "Statistics", errors=(401,))
    base = "/v2/models/{model_name}"
    for path, parameters in (
        (base, (model,)),
        (base + "/versions/{version}", (model, version)),
    ):
        yield path, _get("Inputs and outputs of a model", "ModelMetadata", *parameters)
        yield f"{path}/ready", _get("Whether a model answers", "ModelReady", *parameters)
        yield f"{path}/config", _get("The configuration of a model", "ModelConfig", *parameters)
        yield f"{path}/stats", _get("Statistics of a model", "Statistics", *parameters)
        yield f"{path}/infer", _infer(slots, *parameters)
    index = _order("The models of this device and their states", "IndexRequest")
    index["post"]["responses"]["200"] = {
        "description": "Done.",
        "content": {_JSON: {"schema": ref("Index")}},
    }
    yield "/v2/repository/index", index


def _model_parameter(slots: Mapping[str, Slot]) -> Schema:
    names = {"enum": sorted(slots)} if slots else {"pattern": "^[!-.0-9;-~]+$"}
    return {
        "name": "model_name",
        "in": "path",
        "required": True,
        "schema": {"type": "string"} | names,
    }


def _get(
    summary: str,
    schema: str,
    *parameters: Schema,
    errors: tuple[int, ...] = _ASKED,
    unready: bool = False,
) -> Schema:
    content = {_JSON: {"schema": ref(schema)}}
    operation = _operation(summary, content, errors, parameters)
    if unready:
        operation["responses"]["503"] = {"description": "Not all do.", "content": content}
    return {"get": operation}


def _predict(
    summary: str,
    body: str | Schema,
    answer: str | Schema,
    examples: Schema,
    *parameters: Schema,
) -> Schema:
    content = {_JSON: {"schema": ref(answer) if isinstance(answer, str) else answer}}
    operation = _operation(summary, content, _PREDICTED, (*parameters, _KEY))
    schema = ref(body) if isinstance(body, str) else body
    operation["requestBody"] = {
        "required": True,
        "content": {_JSON: {"schema": schema, "examples": examples}},
    }
    return {"post": operation}


def _infer(slots: Mapping[str, Slot], *parameters: Schema) -> Schema:
    examples = {
        name: {"value": {"inputs": [_tensor(spec) for spec in slot.active.description.inputs]}}
        for name, slot in slots.items()
        if slot.active is not None
    }
    path = _predict(
        "Inference", "InferRequest", "InferResponse", examples, *parameters, _JSON_BYTES
    )
    path["post"]["description"] = _INFER_TEXT
    path["post"]["requestBody"]["content"][_BYTES] = {"schema": {}}
    path["post"]["responses"]["200"]["content"][_BYTES] = {"schema": {}}
    return path


def _order(summary: str, body: str, *parameters: Schema) -> Schema:
    operation = _operation(summary, None, _ORDERED, parameters)
    operation["requestBody"] = {"content": {_JSON: {"schema": ref(body)}}}
    return {"post": operation}


def _operation(
    summary: str,
    content: Schema | None,
    errors: tuple[int, ...],
    parameters: tuple[Schema, ...] = (),
) -> Schema:
    done: Schema = {"description": "Done."}
    if content is not None:
        done["content"] = content
    told: Schema = {
        "summary": summary,
        "responses": {"200": done}
        | {str(status): {"$ref": f"#/components/responses/Error{status}"} for status in errors},
    }
    if parameters:
        told["parameters"] = list(parameters)
    return told


def _either(schema: str) -> Schema:
    return {"anyOf": [ref(schema), ref("Predictions")]}


def _rows(slots: Mapping[str, Slot]) -> Schema:
    """For each model whose rows are columns, a request with one row of zeros."""
    examples: Schema = {}
    for name, slot in slots.items():
        row = _row(slot.active.description) if slot.active is not None else None
        if row is not None:
            examples[name] = {"value": {"instances": [row]}}
    return examples


def _row(description: Description) -> Schema | None:
    row: Schema = {}
    for spec in description.inputs:
        columns = column_names(spec) if spec.shape and spec.role == "data" else []
        if not columns:
            return None
        row |= dict.fromkeys(columns, _zero(spec))
    return row


def _tensor(spec: TensorSpec) -> Schema:
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    told: Schema = {"name": spec.name, "shape": shape, "datatype": datatype_of(spec)}
    count = math.prod(shape)
    if count > _MOST_SHOWN or spec.dtype not in DATATYPES or spec.dtype == "float16":
        return told | {"parameters": {"binary_data_size": "bytes of this tensor"}}
    return told | {"data": [_zero(spec)] * count}


def _zero(spec: TensorSpec) -> Any:
    return {"str": "", "bool": False}.get(spec.dtype, 0.0 if "float" in spec.dtype else 0)
