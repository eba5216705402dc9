"""The schemas of the OpenAPI document: JSON Schema 2020-12, as data."""

from __future__ import annotations

from typing import Any

from edgepack_runtime.serving.datatypes import DATATYPES

Schema = dict[str, Any]

ROW: Schema = {
    "title": "Row",
    "description": "Values in the order of the features, or an object by feature name.",
    "anyOf": [{"type": "array"}, {"type": "object"}, {"type": ["number", "string", "boolean"]}],
}


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    """A list of ``items``."""
    return {"type": "array", "items": items}


def record(required: Schema, optional: Schema | None = None) -> Schema:
    """An object, which may hold more than is named."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": sorted(required),
    }


TEXT: Schema = {"type": "string"}
TRUTH: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
ANY: Schema = {}
_NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
_SHAPE = listed({"type": "integer", "minimum": -1})
_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES.values())}
_PARAMETERS: Schema = {"type": "object"}

_STAT = record({"count": COUNT, "ns": COUNT})
_STATS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
          "cache_hit", "cache_miss")  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "Error": record({"error": TEXT}),
    "Row": ROW,
    "Instances": record({"instances": listed(ref("Row"))}),
    "Predictions": record({"predictions": listed(ANY), "model_name": TEXT, "model_version": TEXT}),
    "Prediction": record({"prediction": ANY, "model_name": TEXT, "model_version": TEXT}),
    "InferRequest": record(
        {"inputs": listed(ref("RequestInput"))},
        {"id": TEXT, "parameters": _PARAMETERS, "outputs": listed(ref("RequestOutput"))},
    ),
    "RequestInput": record(
        {"name": TEXT, "shape": listed(COUNT), "datatype": _DATATYPE},
        {"parameters": _PARAMETERS, "data": {"type": "array"}},
    ),
    "RequestOutput": record({"name": TEXT}, {"parameters": _PARAMETERS}),
    "InferResponse": record(
        {"model_name": TEXT, "model_version": TEXT, "outputs": listed(ref("ResponseOutput"))},
        {"id": TEXT},
    ),
    "ResponseOutput": record(
        {"name": TEXT, "shape": listed(COUNT), "datatype": _DATATYPE},
        {"parameters": _PARAMETERS, "data": {"type": "array"}},
    ),
    "TensorMetadata": record({"name": TEXT, "datatype": _DATATYPE, "shape": _SHAPE}),
    "ModelMetadata": record(
        {
            "name": TEXT,
            "versions": listed(TEXT),
            "platform": TEXT,
            "inputs": listed(ref("TensorMetadata")),
            "outputs": listed(ref("TensorMetadata")),
        }
    ),
    "ModelConfig": record(
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "version_policy": {"type": "object"},
            "max_batch_size": COUNT,
            "input": listed(record({"name": TEXT, "data_type": TEXT, "dims": _SHAPE})),
            "output": listed(record({"name": TEXT, "data_type": TEXT, "dims": _SHAPE})),
        }
    ),
    "ModelStats": record(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": COUNT,
            "inference_count": COUNT,
            "execution_count": COUNT,
            "inference_stats": record(dict.fromkeys(_STATS, _STAT)),
            "batch_stats": listed({"type": "object"}),
            "memory_usage": listed({"type": "object"}),
            "response_stats": {"type": "object"},
        }
    ),
    "Statistics": record({"model_stats": listed(ref("ModelStats"))}),
    "Server": record({"name": TEXT, "version": TEXT, "extensions": listed(TEXT)}),
    "Live": record({"live": TRUTH}),
    "Ready": record({"ready": TRUTH}),
    "ModelReady": record({"name": TEXT, "ready": TRUTH}),
    "Models": record({"models": listed(TEXT)}),
    "IndexRequest": record({}, {"ready": TRUTH}),
    "ChangeRequest": record({}, {"parameters": _PARAMETERS}),
    "Index": listed(record({"name": TEXT, "state": TEXT, "reason": TEXT}, {"version": TEXT})),
    "ModelInfo": record(
        {
            "name": TEXT,
            "model": TEXT,
            "version": TEXT,
            "digest": TEXT,
            "task": TEXT,
            "inputs": listed({"type": "object"}),
            "outputs": listed({"type": "object"}),
        }
    ),
    "Health": record(
        {
            "status": {"type": "string", "enum": ["ok", "degraded", "no models"]},
            "edgepack": TEXT,
            "uptime_seconds": NUMBER,
            "slots": {
                "type": "object",
                "additionalProperties": record(
                    {
                        "ready": TRUTH,
                        "unloaded": TRUTH,
                        "model": _NULLABLE_TEXT,
                        "version": _NULLABLE_TEXT,
                        "digest": _NULLABLE_TEXT,
                        "candidate": {"type": ["object", "null"]},
                        "last_prediction": _NULLABLE_TEXT,
                        "requests": COUNT,
                    }
                ),
            },
        }
    ),
}
