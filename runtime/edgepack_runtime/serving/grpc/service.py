"""The gRPC listener: the same slots, limits, token and certificate as over HTTP.

What is told about models is asked of the HTTP application, so that both forms tell the same.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

# a daemon starts children (the probe); gRPC's handlers for that only warn, in every child
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# what it has to say is raised as well, and its lines are no JSON
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from google.protobuf import json_format  # type: ignore[import-untyped]

from edgepack_contract.errors import ConfigError
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_configured
from edgepack_runtime.config import ServeConfig
from edgepack_runtime.inference.errors import BadRequestError, InputError
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.asgi import BODY_SECONDS, Asgi, HttpError
from edgepack_runtime.serving.codec import Encoded, Payload
from edgepack_runtime.serving.errors import OverloadError, UnknownModelError
from edgepack_runtime.serving.failure import response_of
from edgepack_runtime.serving.grpc.codec import MESSAGES, GrpcCodec, parse
from edgepack_runtime.serving.grpc.schema import METHODS, SERVICE
from edgepack_runtime.serving.grpc.wire import check_parts
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.serving.sockets import MOST_PORT

MOST_CALLS = MOST_OF_ONE = 256
MOST_CONNECTIONS = 128
MOST_STREAMS = 64
"""Streams may stay open without a word; these leave room for other calls."""

SEND_SECONDS = 30.0
"""A client that has not taken an answer after so long is waited for no longer."""

IDLE_SECONDS = 300
HANDSHAKE_SECONDS = 10
KEY_METADATA = "x-edgepack-key"

_OPEN = frozenset({"ServerLive", "ServerReady"})
"""As over HTTP: one bit each, for whoever restarts containers."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_PATHS = {
    "ServerLive": "/v2/health/live",
    "ServerReady": "/v2/health/ready",
    "ServerMetadata": "/v2",
    "ModelReady": "/v2/models/{model}{version}/ready",
    "ModelMetadata": "/v2/models/{model}{version}",
    "ModelConfig": "/v2/models/{model}{version}/config",
    "ModelStatistics": "/v2/models/{model}{version}/stats",
    "RepositoryIndex": "/v2/repository/index",
    "RepositoryModelLoad": "/v2/repository/models/{model}/load",
    "RepositoryModelUnload": "/v2/repository/models/{model}/unload",
}
"""Where the HTTP application has the answer to a method."""

_WRAPPED = {"ModelConfig": "config", "RepositoryIndex": "models"}
"""What the document over HTTP is called in the message."""

Context = Any
"""``grpc.aio.ServicerContext``, which comes without types."""


Work = Callable[[bytes, Context], Awaitable[bytes]]


class RefusedError(Exception):
    """A call that is answered with an HTTP status and words, as over HTTP."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """``inference.GRPCInferenceService`` over slots.

    Args:
        app: Tells about server and models.
        slots: The slots by name; looked at anew for each request.
        guard: What callers must bring.
    """

    def __init__(self, app: App, slots: Mapping[str, Slot], guard: Guard) -> None:
        self._app, self._slots, self._guard = app, slots, guard
        self._codec = GrpcCodec()
        self._calls = self._streams = 0

    def service(self, details: Any) -> Any:
        """The handler of a call, None when there is no such method."""
        service, _, method = details.method.lstrip("/").partition("/")
        if service != SERVICE or method not in METHODS:
            return None
        # every call as a stream, which is the same to a client: who is refused is not read, and
        # both reading and sending can have an end
        return grpc.stream_stream_rpc_method_handler(self._handler(method, details))

    def _handler(self, method: str, details: Any) -> Callable[[Any, Context], Awaitable[None]]:
        if method not in _OPEN and not self._admits(details.invocation_metadata):
            return _unauthenticated
        if method == "ModelStreamInfer":
            return self._stream
        work = self._infer if method == "ModelInfer" else partial(self._told, method)
        return partial(self._once, work)

    async def _once(self, work: Work, _requests: Any, context: Context) -> None:
        # gRPC's own limit counts a call whose answer nobody takes for as long as its connection
        if self._calls >= MOST_CALLS:
            await _abort(context, OverloadError(f"{MOST_CALLS} calls are being answered already"))
        self._calls += 1
        try:
            answer = await work(await _heard(context), context)
        except Exception as error:  # noqa: BLE001 - response_of logs it
            # the outermost place that still knows the call: a defect of ours costs one answer
            await _abort(context, error)
        else:
            await _send(context, answer)
        finally:
            self._calls -= 1

    async def _told(self, method: str, raw: bytes, _context: Context) -> bytes:
        return await self._tell(method, raw)

    async def _tell(self, method: str, raw: bytes) -> bytes:
        request = parse(METHODS[method][0], raw)
        document = await self._ask(method, request)
        if method in _WRAPPED:
            document = {_WRAPPED[method]: document}
        response = MESSAGES[METHODS[method][1]]()
        json_format.ParseDict(document, response, ignore_unknown_fields=True)
        return bytes(response.SerializeToString())

    async def _ask(self, method: str, request: Any) -> Any:
        orders = method.startswith("Repository")
        body = _order(request) if orders else b""
        path = _path(method, request)
        status, answer = await _get(self._app, "POST" if orders else "GET", path, body)
        found = json.loads(answer) if answer else {}
        if method in ("ServerReady", "ModelReady") and status in (404, 503):
            return {"ready": False}
        if status != 200:
            raise RefusedError(status, found["error"])
        return found

    async def _infer(self, raw: bytes, context: Context) -> bytes:
        return (await self._predict(raw, _key(context))).body

    async def _stream(self, _requests: Any, context: Context) -> None:
        if self._streams >= MOST_STREAMS:
            await _abort(context, OverloadError(f"{MOST_STREAMS} streams are open already"))
        self._streams += 1
        try:
            while (raw := await context.read()) is not grpc.aio.EOF:
                await _send(context, await self._part(raw, context))
        finally:
            self._streams -= 1

    async def _part(self, raw: bytes, context: Context) -> bytes:
        response = MESSAGES["ModelStreamInferResponse"]()
        try:
            encoded = await self._predict(raw, _key(context))
            response.infer_response.MergeFromString(encoded.body)
        except Exception as error:  # noqa: BLE001 - response_of logs it
            # as the reference server: an error is an answer of the stream, which goes on
            response.error_message = _words(error)[1]
        return bytes(response.SerializeToString())

    async def _predict(self, raw: bytes, key: str | bytes | None) -> Encoded:
        # the tensors are read by the codec, perhaps in another thread
        target = parse("InferTarget", raw)
        slot = self._slots.get(target.model_name)
        if slot is None:
            names = ", ".join(sorted(self._slots)) or "none"
            raise UnknownModelError(
                f"there is no model {target.model_name[:80]!r}; this device has: {names}"
            )
        try:
            check_parts(raw)
        except (HttpError, InputError):
            slot.refused_early("bad_request")
            raise
        held = key.encode() if isinstance(key, str) else key
        payload = Payload(raw, None, held)
        with self._app.predictions.room.holding() as hold:
            hold.grow(len(raw))
            version = target.model_version or None
            return (await predict(slot, self._codec, payload, version)).encoded

    def _admits(self, metadata: Any) -> bool:
        return self._guard.admits(
            (name.encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in metadata
        )


class GrpcListener:
    """A gRPC server that listens. Make it with :func:`listen`.

    Attributes:
        port: Its TCP port.
    """

    def __init__(self, server: Any, port: int) -> None:
        self._server = server
        self.port = port

    async def stop(self, seconds: float) -> None:
        """Take no more calls, finish what is in flight within ``seconds``, end.

        Called again it can only make the time shorter.
        """
        await self._server.stop(seconds)


async def listen(
    app: App, slots: Mapping[str, Slot], config: ServeConfig, guard: Guard
) -> GrpcListener:
    """Begin to serve in the running loop, where and as ``config`` says of HTTP too.

    Whether that is secure the daemon's gate has judged: host, certificate and token are the same.

    Raises:
        ConfigError: The place cannot be listened at (code ``cannot-listen``).
    """
    host = f"[{config.host}]" if ":" in config.host else config.host
    place = f"{host}:{config.grpc_port}"
    if config.grpc_port is not None and not 0 <= config.grpc_port <= MOST_PORT:
        # gRPC would take the lower 16 bits of it, and serve where nobody looks
        raise ConfigError(
            f"cannot listen at {place}: a port is a number from 0 to {MOST_PORT}",
            code="cannot-listen",
        )
    server = grpc.aio.server(
        handlers=[Service(app, slots, guard)],
        options=[
            ("grpc.max_receive_message_length", config.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", LIMITS.request_header_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", MOST_OF_ONE),
            ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
            ("grpc.max_connection_idle_ms", 1000 * IDLE_SECONDS),
            ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
        ],
    )
    try:
        credentials = _credentials(config)
        if credentials is None:
            port = server.add_insecure_port(place)
        else:
            port = server.add_secure_port(place, credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen at {place} for gRPC: is the port taken, the host one of this machine?",
            code="cannot-listen",
        ) from error
    await server.start()
    return GrpcListener(server, port)


def _credentials(config: ServeConfig) -> Any:
    if config.tls_certificate is None or config.tls_key is None:
        return None

    def newest() -> Any:
        # asked at each handshake, so that a renewed certificate is taken up without a restart
        key, certificate = (
            read_configured(Path(path or ""), LIMITS.key_file_bytes, code="bad-tls")
            for path in (config.tls_key, config.tls_certificate)
        )
        return grpc.ssl_server_certificate_configuration([(key, certificate)])

    return grpc.dynamic_ssl_server_credentials(newest(), newest)


async def _get(app: Asgi, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    headers = [(b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await app(scope, receive, send)
    return told[0]["status"], told[1]["body"]


def _path(method: str, request: Any) -> str:
    pattern = _PATHS[method]
    if "{model}" not in pattern:
        return pattern
    name = request.model_name if method.startswith("Repository") else request.name
    if method == "ModelStatistics" and not name:
        return "/v2/models/stats"
    version = getattr(request, "version", "")
    part = f"/versions/{quote(version, safe='')}" if version else ""
    return pattern.format(model=quote(name, safe="") or "-", version=part)


def _order(request: Any) -> bytes:
    document = json_format.MessageToDict(request, preserving_proto_field_name=True)
    return json.dumps(document).encode()


def _words(error: Exception) -> tuple[int, str]:
    if isinstance(error, RefusedError):
        return error.status, str(error)
    response = response_of(error)
    return response.status, json.loads(response.body)["error"]


async def _abort(context: Context, error: Exception) -> None:
    status, words = _words(error)
    await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), words)


async def _heard(context: Context) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await context.read()
    except TimeoutError as error:
        words = f"the message did not arrive within {BODY_SECONDS:g} s"
        raise RefusedError(408, words) from error
    if raw is grpc.aio.EOF:
        raise BadRequestError("the call ended without a message")
    return bytes(raw)


async def _send(context: Context, answer: bytes) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await context.write(answer)
    except TimeoutError as error:
        # a status would have to wait for the answer before it, and a handler that is cancelled
        # sends none: the call counts no more, and gRPC keeps its answer until the connection ends
        raise asyncio.CancelledError from error


def _key(context: Context) -> str | bytes | None:
    found: str | bytes | None = dict(context.invocation_metadata()).get(KEY_METADATA)
    return found


async def _unauthenticated(_requests: Any, context: Context) -> None:
    words = "send the token of this device in the metadata: authorization: Bearer TOKEN"
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, words)
