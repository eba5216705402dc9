"""What the Open Inference Protocol tells about a server and its models.

Sources: github.com/kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``;
github.com/triton-inference-server/server, ``docs/protocol/extension_model_configuration.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgepack_contract.description import Description, TensorSpec
from edgepack_runtime.serving.datatypes import datatype_of, dims

PLATFORM = "onnx_onnxv1"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]


def model_metadata(slot: str, description: Description, versions: Sequence[str]) -> dict[str, Any]:
    """The model metadata response; ``versions`` are all that can be asked for."""
    return {
        "name": slot,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(spec) for spec in description.inputs],
        "outputs": [_tensor_metadata(spec) for spec in description.outputs],
    }


def model_config(slot: str, description: Description) -> dict[str, Any]:
    """The model configuration response; ``max_batch_size`` 0 says that shapes are complete."""
    return {
        "name": slot,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [_tensor_config(spec) for spec in description.inputs],
        "output": [_tensor_config(spec) for spec in description.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec), "shape": dims(spec)}


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    datatype = datatype_of(spec)
    # the configuration of Triton has names of its own for these
    named = {"BYTES": "STRING"}.get(datatype, datatype)
    return {"name": spec.name, "data_type": f"TYPE_{named}", "dims": dims(spec)}
