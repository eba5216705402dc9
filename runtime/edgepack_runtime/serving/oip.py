"""``POST /v2/models/M/infer`` of the Open Inference Protocol, with tensors as JSON and as bytes.

Sources: github.com/kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``;
github.com/triton-inference-server/server, ``docs/protocol/extension_binary_data.md``.
What a request holds beyond the two is ignored, as other servers do, but for what would change the
meaning of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgepack_contract.description import Description, TensorSpec
from edgepack_contract.limits import KIB
from edgepack_runtime.inference.coerce import check_feeds, tensor_from_json
from edgepack_runtime.inference.errors import BadRequestError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.codec import Encoded, Payload, PredictRequest
from edgepack_runtime.serving.datatypes import DATATYPES, array_datatype, check_datatype
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.tensor_bytes import raw_tensor, tensor_from_bytes, tensor_to_bytes

_MOST_PLAIN_BYTES = 64 * KIB
"""What is larger holds more than is read in one go."""

_UNSUPPORTED = ("classification", "shared_memory_region")


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct, frozen=True):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] = {}


class _PlainInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class _PlainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: list[_PlainInput]
    id: str | None = None


_plain_decoder = msgspec.json.Decoder(_PlainRequest)
_decoder = msgspec.json.Decoder(_Request)
_encoder = msgspec.json.Encoder()


class OipCodec:
    """The protocol's inference requests and answers."""

    def decode(self, model: ServingModel, payload: Payload) -> PredictRequest:
        """Read an inference request.

        Raises:
            InputError: It does not fit the protocol or the model.
        """
        plain = _plain_request(model, payload)
        if plain is not None:
            return plain
        if payload.json_bytes == 0:
            return _raw_request(model.description, payload)
        header, rest = _split(payload)
        try:
            request = _decoder.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(f"not an inference request: {error}") from error
        feeds = _feeds(model.description.inputs, request.inputs, rest)
        check_feeds(model.description, feeds)
        names, binary = wanted(
            model.description,
            [(one.name, one.parameters) for one in request.outputs or ()],
            all_binary=_flag("the request", request.parameters, "binary_data_output") or False,
        )
        return PredictRequest(feeds, request.id, names, binary, key=payload.key)

    def encode(
        self, slot: str, model: ServingModel, request: PredictRequest, outputs: dict[str, Tensor]
    ) -> Encoded:
        """Write an inference response; data are flat, in row-major order."""
        names = request.outputs if request.outputs is not None else list(outputs)
        answer: dict[str, Any] = {"model_name": slot, "model_version": model.version}
        if request.id is not None:
            answer["id"] = request.id
        if not request.binary:
            answer["outputs"] = [_json_output(name, outputs[name]) for name in names]
            return Encoded(_encoder.encode(answer))
        parts = {name: tensor_to_bytes(outputs[name]) for name in names if name in request.binary}
        answer["outputs"] = [
            _binary_output(name, outputs[name], len(parts[name]))
            if name in parts
            else _json_output(name, outputs[name])
            for name in names
        ]
        header = _encoder.encode(answer)
        return Encoded(b"".join((header, *parts.values())), len(header))


def wanted(
    description: Description,
    outputs: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    all_binary: bool = False,
) -> tuple[list[str] | None, frozenset[str]]:
    """Which outputs an answer holds, and which of those as bytes.

    Args:
        description: Of the model that is asked.
        outputs: Names and parameters as asked for; nothing for all.
        all_binary: Whether outputs are bytes unless their own parameters say otherwise.

    Returns:
        Names in the order of the request, None for all; and the names of those that are bytes.

    Raises:
        BadRequestError: An unknown output, one that is there twice, or a parameter that cannot be
            followed.
    """
    known = [spec.name for spec in description.outputs]
    if not outputs:
        return None, frozenset(known if all_binary else ())
    names = [name for name, _ in outputs]
    binary = set()
    for place, (name, parameters) in enumerate(outputs):
        if name not in known:
            raise BadRequestError(
                f"output {name[:80]!r} is not one of the model's: {', '.join(sorted(known))}"
            )
        if name in names[:place]:
            raise BadRequestError(f"output {name!r} is there twice")
        what = f"output {name!r}"
        check_supported(what, parameters)
        own = _flag(what, parameters, "binary_data")
        if all_binary if own is None else own:
            binary.add(name)
    return names, frozenset(binary)


def check_supported(what: str, parameters: Mapping[str, Any]) -> None:
    """Check for extensions without which an answer would be a wrong one.

    Raises:
        BadRequestError: One is asked for.
    """
    for name in _UNSUPPORTED:
        if name in parameters:
            raise BadRequestError(f"{what}: the parameter {name!r} is not supported")


def _plain_request(model: ServingModel, payload: Payload) -> PredictRequest | None:
    """The usual request, one input of flat numbers and nothing else; None for any other."""
    usual = model.float_rows
    if usual is None or payload.json_bytes is not None or len(payload.body) > _MOST_PLAIN_BYTES:
        return None
    try:
        request = _plain_decoder.decode(payload.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # more than that, or an error, whose words are for the long way to find
        return None
    if len(request.inputs) != 1 or usual.dtype == "float16":
        return None
    given = request.inputs[0]
    if given.name != usual.name or given.datatype != DATATYPES[usual.dtype]:
        return None
    rows = usual.read(given.data, given.shape)
    if rows is None:
        return None
    return PredictRequest({usual.name: rows}, request.id, key=payload.key)


def _split(payload: Payload) -> tuple[bytes | memoryview, memoryview]:
    if payload.json_bytes is None:
        return payload.body, memoryview(b"")
    body, size = memoryview(payload.body), payload.json_bytes
    if not 0 <= size <= len(body):
        raise BadRequestError(
            f"Inference-Header-Content-Length is {size}, the body has {len(body)} bytes"
        )
    return body[:size], body[size:]


def _raw_request(description: Description, payload: Payload) -> PredictRequest:
    if len(description.inputs) != 1:
        raise BadRequestError(
            f"a raw body is one input, this model has {len(description.inputs)}; send "
            "Inference-Header-Content-Length, a JSON header and the tensors behind it"
        )
    spec = description.inputs[0]
    feeds = {spec.name: raw_tensor(spec, memoryview(payload.body))}
    check_feeds(description, feeds)
    names, binary = wanted(description, [], all_binary=True)
    return PredictRequest(feeds, None, names, binary, key=payload.key)


def _feeds(
    specs: Sequence[TensorSpec], items: Sequence[_Input], rest: memoryview
) -> dict[str, Tensor]:
    known = {spec.name: spec for spec in specs}
    feeds: dict[str, Tensor] = {}
    place = 0
    for item in items:
        if item.name in feeds:
            raise BadRequestError(f"input {item.name[:80]!r} is there twice")
        spec = known.get(item.name)
        if spec is None:
            raise BadRequestError(
                f"input {item.name[:80]!r} is not one of the model's: {', '.join(known)}"
            )
        check_datatype(spec, item.datatype)
        if not item.parameters:
            feeds[item.name] = _json_tensor(spec, item)
            continue
        check_supported(f"input {spec.name!r}", item.parameters)
        size = _binary_size(spec, item)
        if size is None:
            feeds[item.name] = _json_tensor(spec, item)
            continue
        feeds[item.name] = tensor_from_bytes(spec, item.shape, _part(spec, rest, place, size))
        place += size
    if place != len(rest):
        raise BadRequestError(
            f"unexpected additional input data: {len(rest) - place} bytes behind the last tensor"
        )
    return feeds


def _part(spec: TensorSpec, rest: memoryview, place: int, size: int) -> memoryview:
    left = len(rest) - place
    if size > left:
        raise BadRequestError(
            f"unexpected size for input {spec.name!r}: expected {size - left} additional bytes; "
            "Inference-Header-Content-Length says how many bytes of the body are JSON"
        )
    return rest[place : place + size]


def _binary_size(spec: TensorSpec, item: _Input) -> int | None:
    size = item.parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise BadRequestError(
            f"input {spec.name!r}: expected binary_data_size to be a number of bytes, "
            f"given {str(size)[:40]!r}"
        )
    if item.data is not msgspec.UNSET:
        raise BadRequestError(f"input {spec.name!r} has both 'data' and 'binary_data_size'")
    return size


def _json_tensor(spec: TensorSpec, item: _Input) -> Tensor:
    if spec.dtype == "float16":
        raise BadRequestError(
            f"input {spec.name!r}: FP16 has no JSON form in this protocol; send it as binary data, "
            "or use /v1/models/M:predict"
        )
    if isinstance(item.data, msgspec.UnsetType):
        raise BadRequestError(
            f"input {spec.name!r} has no 'data', and no 'binary_data_size' in its parameters"
        )
    return tensor_from_json(spec, item.data, item.shape)


def _flag(what: str, parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise BadRequestError(f"{what}: expected {name!r} to be true or false")


def _json_output(name: str, array: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": array_datatype(array),
        "data": array.ravel().tolist(),
    }


def _binary_output(name: str, array: Tensor, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": array_datatype(array),
        "parameters": {"binary_data_size": size},
    }
