"""The Open Inference Protocol (v2), its JSON form.

Source: github.com/kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``.
What a request holds beyond the specification is ignored, as other servers do: clients ask for
extensions (binary answers, priorities) without looking whether there are any.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgepack_contract.description import Description, TensorSpec
from edgepack_runtime.inference.coerce import check_feeds, tensor_from_json
from edgepack_runtime.inference.errors import BadRequestError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.codec import Encoded, Payload, PredictRequest
from edgepack_runtime.serving.model import ServingModel

PLATFORM = "onnx_onnxv1"
EXTENSIONS = ["model_configuration", "statistics"]

DATATYPES = {
    "bool": "BOOL",
    "str": "BYTES",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
}


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct, frozen=True):
    name: str


class _Request(msgspec.Struct, frozen=True):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_Output] | None = None


_decoder = msgspec.json.Decoder(_Request)
_encoder = msgspec.json.Encoder()


class OipCodec:
    """``POST /v2/models/M/infer``."""

    def decode(self, model: ServingModel, payload: Payload) -> PredictRequest:
        """Read an inference request.

        Raises:
            InputError: It does not fit the protocol or the model.
        """
        try:
            request = _decoder.decode(payload.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(f"not an inference request: {error}") from error
        specs = {spec.name: spec for spec in model.description.inputs}
        feeds: dict[str, Tensor] = {}
        for item in request.inputs:
            if item.name in feeds:
                raise BadRequestError(f"input {item.name[:80]!r} is there twice")
            if item.name not in specs:
                raise BadRequestError(
                    f"input {item.name[:80]!r} is not one of the model's: {', '.join(specs)}"
                )
            feeds[item.name] = _tensor(specs[item.name], item)
        check_feeds(model.description, feeds)
        return PredictRequest(feeds, request.id, _wanted(model.description, request.outputs))

    def encode(
        self, slot: str, model: ServingModel, request: PredictRequest, outputs: dict[str, Tensor]
    ) -> Encoded:
        """Write an inference response; data are flat, in row-major order."""
        names = request.outputs if request.outputs is not None else list(outputs)
        answer: dict[str, Any] = {"model_name": slot, "model_version": model.version}
        if request.id is not None:
            answer["id"] = request.id
        answer["outputs"] = [_output(name, outputs[name]) for name in names]
        return Encoded(_encoder.encode(answer))


def model_metadata(slot: str, description: Description) -> dict[str, Any]:
    """The model metadata response."""
    return {
        "name": slot,
        "versions": [description.version],
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


def _tensor(spec: TensorSpec, item: _Input) -> Tensor:
    expected = DATATYPES.get(spec.dtype, spec.dtype)
    if item.datatype != expected:
        raise BadRequestError(
            f"input {spec.name!r}: expected datatype {expected}, given {item.datatype[:16]!r}"
        )
    if "binary_data_size" in item.parameters:
        raise BadRequestError(
            f"input {spec.name!r}: binary tensor data is not supported; send it as JSON in 'data'"
        )
    if expected == "FP16":
        raise BadRequestError(
            f"input {spec.name!r}: FP16 has no JSON form in this protocol; use /v1/models/M:predict"
        )
    if isinstance(item.data, msgspec.UnsetType):
        raise BadRequestError(f"input {spec.name!r} has no 'data'")
    return tensor_from_json(spec, item.data, item.shape)


def _wanted(description: Description, outputs: list[_Output] | None) -> list[str] | None:
    if not outputs:
        return None
    known = {spec.name for spec in description.outputs}
    for output in outputs:
        if output.name not in known:
            raise BadRequestError(
                f"output {output.name[:80]!r} is not one of the model's: {', '.join(sorted(known))}"
            )
    return [output.name for output in outputs]


def _output(name: str, array: Tensor) -> dict[str, Any]:
    dtype = "str" if array.dtype.kind in "OU" else array.dtype.name
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": DATATYPES[dtype],
        "data": array.ravel().tolist(),
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": DATATYPES.get(spec.dtype, spec.dtype),
        "shape": _dims(spec),
    }


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    datatype = DATATYPES.get(spec.dtype, spec.dtype)
    # the configuration of Triton has names of its own for these
    named = {"BYTES": "STRING"}.get(datatype, datatype)
    return {"name": spec.name, "data_type": f"TYPE_{named}", "dims": _dims(spec)}


def _dims(spec: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.shape]
