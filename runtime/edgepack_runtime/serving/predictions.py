"""From a request's head and body to the answer with a prediction, whatever way it came in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from edgepack_contract.limits import KIB, LIMITS
from edgepack_runtime.inference.errors import BadRequestError, InputError
from edgepack_runtime.memory import available_bytes
from edgepack_runtime.serving.asgi import CLOSE, JSON, Header, HttpError, Response
from edgepack_runtime.serving.codec import Codec, Encoded, Payload
from edgepack_runtime.serving.compression import (
    Encoding,
    encoding_for,
    encoding_of,
    is_worth_packing,
    pack,
    unpack,
)
from edgepack_runtime.serving.errors import UnknownModelError
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.oip import OipCodec
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.room import Room, room_size
from edgepack_runtime.serving.routes import Endpoint, Route
from edgepack_runtime.serving.rows import RowCodec
from edgepack_runtime.serving.slot import Slot

VERSION_HEADER = b"x-edgepack-version"
KEY_HEADER = b"x-edgepack-key"
JSON_BYTES_HEADER = b"inference-header-content-length"

CODECS: dict[Endpoint, Codec] = {
    Endpoint.V2_INFER: OipCodec(),
    Endpoint.V1_PREDICT: InstancesCodec(),
    Endpoint.PREDICT_ROW: RowCodec(batch=False),
    Endpoint.PREDICT_ROWS: RowCodec(batch=True),
}
"""What predicts, and in which protocol."""

UNPACKED_AT_ONCE = 4
"""So many packed bodies are in memory unpacked; the others wait as they came."""

_IN_THREAD_BYTES = 64 * KIB
_BYTES: Header = (b"content-type", b"application/octet-stream")


class Predictions:
    """Answers the endpoints that predict.

    Args:
        slots: The slots by name; looked at anew for each request.
        body_bytes: The most that a body may hold, unpacked.

    Attributes:
        room: What large bodies take of, whatever way they come in.
    """

    def __init__(
        self, slots: Mapping[str, Slot], body_bytes: int = LIMITS.request_body_bytes
    ) -> None:
        self.body_bytes = body_bytes
        self.room = Room(room_size(body_bytes, available_bytes()))
        self._slots = slots
        self._unpacking = asyncio.Semaphore(UNPACKED_AT_ONCE)

    def slot(self, route: Route) -> Slot:
        """The slot that a path names, or the only one where it names none.

        Raises:
            UnknownModelError: There is none of that name, or none at all.
            HttpError: 400, the path names none and there are several.
        """
        slot = self._slots.get(route.model)
        if slot is not None:
            return slot
        names = ", ".join(sorted(self._slots)) or "none"
        if route.model:
            raise UnknownModelError(
                f"there is no model {route.model[:80]!r}; this device has: {names}"
            )
        if len(self._slots) > 1:
            raise HttpError(
                400, f"this device has several models: {names}; name one: /v1/models/NAME:predict"
            )
        if not self._slots:
            raise UnknownModelError("this device has no model")
        return next(iter(self._slots.values()))

    def begin(
        self, route: Route, headers: Mapping[bytes, bytes], body: bytes
    ) -> tuple[Slot, Payload]:
        """Who is asked, and what; a request that is refused here is counted.

        Raises:
            UnknownModelError: The path names no slot.
            HttpError: The same, or the body is packed in an unknown way, or has too much JSON.
            BadRequestError: See :func:`payload_of`.
        """
        slot = self.slot(route)
        try:
            encoding_of(headers)
            return slot, payload_of(route.endpoint, headers, body)
        except (HttpError, InputError):
            slot.refused_early("bad_request")
            raise

    async def answer(self, route: Route, headers: Mapping[bytes, bytes], body: bytes) -> Response:
        """Answer a request to an endpoint of :data:`CODECS`.

        Raises:
            HttpError: It cannot be unpacked, or names no model.
            EdgepackError: See :func:`.predict`.
        """
        slot, payload = self.begin(route, headers, body)
        encoding = encoding_of(headers)
        if encoding is None:
            return await self._predict(slot, route, headers, payload)
        async with self._unpacking:
            plain = await self._unpack(slot, encoding, payload)
            return await self._predict(slot, route, headers, plain)

    async def _unpack(self, slot: Slot, encoding: Encoding, payload: Payload) -> Payload:
        try:
            body = await asyncio.to_thread(unpack, encoding, payload.body, self.body_bytes)
            check_json_size(body, payload.json_bytes)
        except HttpError:
            slot.refused_early("bad_request")
            raise
        return Payload(body, payload.json_bytes, payload.key)

    async def _predict(
        self, slot: Slot, route: Route, headers: Mapping[bytes, bytes], payload: Payload
    ) -> Response:
        codec = CODECS[route.endpoint]
        prediction = await predict(slot, codec, payload, route.version)
        return await packed(answer_of(prediction.encoded, prediction.version), headers)


def payload_of(endpoint: Endpoint, headers: Mapping[bytes, bytes], body: bytes) -> Payload:
    """What a caller sent.

    Raises:
        BadRequestError: The header that says where the JSON ends is not a length, or has no meaning
            at this endpoint.
        HttpError: 413, there is more JSON than may be.
    """
    given = headers.get(JSON_BYTES_HEADER)
    key = headers.get(KEY_HEADER)
    if given is None:
        check_json_size(body, None)
        return Payload(body, None, key)
    if endpoint is not Endpoint.V2_INFER:
        raise BadRequestError("binary tensor data go to /v2/models/M/infer only")
    if not given.isdigit() or len(given) > len(str(LIMITS.request_body_bytes)):
        raise BadRequestError(
            "expected Inference-Header-Content-Length to be the length of the JSON in bytes, "
            f"given {given.decode('latin-1')[:40]!r}"
        )
    size = int(given)
    check_json_size(body, size)
    if not size and headers.get(b"content-type", b"").startswith(JSON[1]):
        # JSON read as numbers would get an answer
        raise BadRequestError(
            "Inference-Header-Content-Length is 0, so the body is one raw input, but its "
            "Content-Type says that it is JSON; leave one of them out"
        )
    return Payload(body, size, key)


def check_json_size(body: bytes, json_bytes: int | None) -> None:
    """Check how much of a body is JSON: read, it takes some thirty times its size.

    Raises:
        HttpError: 413, it is too much.
    """
    size = len(body) if json_bytes is None else json_bytes
    if size > LIMITS.request_json_bytes:
        raise HttpError(
            413,
            f"the request has {size} bytes of JSON, at most {LIMITS.request_json_bytes}; send "
            "tensors as binary data (docs/serving.md)",
            CLOSE,
        )


def answer_of(encoded: Encoded, version: str) -> Response:
    """The answer that carries a prediction of a version."""
    told = (VERSION_HEADER, version.encode())
    if encoded.json_bytes is None:
        return Response(200, encoded.body, (JSON, told))
    return Response(
        200, encoded.body, (_BYTES, (JSON_BYTES_HEADER, b"%d" % encoded.json_bytes), told)
    )


async def packed(response: Response, headers: Mapping[bytes, bytes]) -> Response:
    """An answer, packed when the caller likes that and it is worth it."""
    if not is_worth_packing(response):
        return response
    encoding = encoding_for(headers)
    if encoding is None:
        return response
    if len(response.body) < _IN_THREAD_BYTES:
        return pack(response, encoding)
    return await asyncio.to_thread(pack, response, encoding)
