"""``ModelInfer``: a request in protobuf to arrays, and arrays to a response.

Tensors come as raw contents, in the order of the inputs, or typed; never both in one request. They
go back as raw contents, as the reference server's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgepack_contract.description import Description, TensorSpec
from edgepack_runtime.inference.coerce import check_feeds, check_shape, tensor_from_values
from edgepack_runtime.inference.errors import BadRequestError, ShapeError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.codec import Encoded, Payload, PredictRequest
from edgepack_runtime.serving.datatypes import array_datatype, check_datatype
from edgepack_runtime.serving.grpc.schema import message_classes
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.oip import check_supported, wanted
from edgepack_runtime.serving.tensor_bytes import tensor_from_bytes, tensor_to_bytes

MESSAGES = message_classes()

_CONTENTS = {
    "bool": "bool_contents", "str": "bytes_contents", "float32": "fp32_contents",
    "float64": "fp64_contents", "int64": "int64_contents", "uint64": "uint64_contents",
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
}  # fmt: skip


class GrpcCodec:
    """Inference requests and responses as protobuf."""

    def decode(self, model: ServingModel, payload: Payload) -> PredictRequest:
        """Read an inference request.

        Raises:
            InputError: It does not fit the protocol or the model.
        """
        request = parse("ModelInferRequest", payload.body)
        feeds = _feeds(model.description, request)
        check_feeds(model.description, feeds)
        check_supported("the request", request.parameters)
        outputs = [(one.name, _plain(one.parameters)) for one in request.outputs]
        names, _ = wanted(model.description, outputs)
        return PredictRequest(feeds, request.id or None, names, key=payload.key)

    def encode(
        self, slot: str, model: ServingModel, request: PredictRequest, outputs: dict[str, Tensor]
    ) -> Encoded:
        """Write an inference response."""
        response = MESSAGES["ModelInferResponse"](
            model_name=slot, model_version=model.version, id=request.id or ""
        )
        for name in request.outputs if request.outputs is not None else outputs:
            array = outputs[name]
            response.outputs.add(name=name, datatype=array_datatype(array), shape=array.shape)
            response.raw_output_contents.append(bytes(tensor_to_bytes(array)))
        return Encoded(response.SerializeToString())


def parse(name: str, raw: bytes) -> Any:
    """Read a message.

    Raises:
        BadRequestError: It is not one.
    """
    try:
        return MESSAGES[name].FromString(raw)
    except (DecodeError, RecursionError) as error:
        raise BadRequestError(f"not a {name}: {error}") from error


def _feeds(description: Description, request: Any) -> dict[str, Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequestError(
            f"there are {len(request.inputs)} inputs and {len(raw)} raw_input_contents; expected "
            "one for each, or none"
        )
    specs = {spec.name: spec for spec in description.inputs}
    feeds: dict[str, Tensor] = {}
    for place, item in enumerate(request.inputs):
        spec = specs.get(item.name)
        if spec is None:
            raise BadRequestError(
                f"input {item.name[:80]!r} is not one of the model's: {', '.join(specs)}"
            )
        if spec.name in feeds:
            raise BadRequestError(f"input {spec.name!r} is there twice")
        check_datatype(spec, item.datatype)
        check_supported(f"input {spec.name!r}", item.parameters)
        feeds[spec.name] = _from_raw(spec, item, raw[place]) if raw else _from_contents(spec, item)
    return feeds


def _from_raw(spec: TensorSpec, item: Any, raw: bytes) -> Tensor:
    if item.HasField("contents"):
        raise BadRequestError(f"input {spec.name!r} has both contents and raw_input_contents")
    return tensor_from_bytes(spec, item.shape, memoryview(raw))


def _from_contents(spec: TensorSpec, item: Any) -> Tensor:
    check_shape(spec, item.shape)
    field = _CONTENTS.get(spec.dtype)
    if field is None:
        raise BadRequestError(
            f"input {spec.name!r}: {item.datatype} has no typed contents; use raw_input_contents"
        )
    values = list(getattr(item.contents, field))
    count = int(np.prod([int(size) for size in item.shape], dtype=object))
    if len(values) != count:
        raise ShapeError(
            f"input {spec.name!r}: the shape {list(item.shape)} holds {count} values, "
            f"{field} has {len(values)}"
        )
    if spec.dtype == "str":
        values = [_text(spec, value) for value in values]
    return _shaped(spec, values, list(item.shape))


def _shaped(spec: TensorSpec, values: list[Any], shape: list[int]) -> Tensor:
    flat = TensorSpec(name=spec.name, dtype=spec.dtype, shape=["values"])
    return tensor_from_values(flat, values).reshape(shape)


def _text(spec: TensorSpec, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadRequestError(f"input {spec.name!r}: not UTF-8: {error.reason}") from error


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    chosen = (
        (name, value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()
    )
    return {name: getattr(value, field) for name, value, field in chosen if field}
