"""The HTTP application of a device: which path is what, and which error is which status."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from edgepack_contract import __version__
from edgepack_contract.errors import EdgepackError
from edgepack_contract.gate import Waiver
from edgepack_runtime.inference.errors import InputError
from edgepack_runtime.serving import oip, oip_documents, status
from edgepack_runtime.serving.asgi import (
    HttpError,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    error_response,
    json_response,
    read_body,
)
from edgepack_runtime.serving.codec import Codec, Payload
from edgepack_runtime.serving.errors import NoModelError, OverloadError, UnknownModelError
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.metrics import CONTENT_TYPE, render_metrics
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot, Tenure

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

VERSION_HEADER = b"x-edgepack-version"
_RETRY = (b"retry-after", b"1")
_V2_MODEL = re.compile(
    r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>[a-z]+))?"
)
_V1_PREDICT = re.compile(r"/v1/models/(?P<model>[^/:]+):predict")


class App:
    """An ASGI application over slots.

    Args:
        slots: The slots by name; looked at anew for each request.
        phase_of: Where the installation of a slot stands, None when nobody knows.
        monotonic: Seconds, for the uptime.
        waiver: Why the daemon runs although it is insecure, None when it is not.
        refusals: How many documents were refused, by code; looked at anew for each request.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        *,
        phase_of: status.PhaseOf = lambda _slot: None,
        monotonic: Callable[[], float] = time.monotonic,
        waiver: Waiver | None = None,
        refusals: Mapping[str, int] | None = None,
    ) -> None:
        self._slots = slots
        self._phase_of = phase_of
        self._monotonic = monotonic
        self._started = monotonic()
        self._waiver = waiver
        self._refusals = {} if refusals is None else refusals
        self._oip, self._instances = oip.OipCodec(), InstancesCodec()
        self._fixed: dict[str, tuple[str, Endpoint]] = {
            "/": ("GET", self._page),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
            "/v2": ("GET", self._server),
            "/v2/health/live": ("GET", self._live),
            "/v2/health/ready": ("GET", self._ready),
            "/v2/models/stats": ("GET", self._all_stats),
            "/v2/repository/index": ("POST", self._index),
        }
        self._verbs: dict[str | None, tuple[str, Endpoint]] = {
            None: ("GET", self._metadata),
            "ready": ("GET", self._model_ready),
            "config": ("GET", self._config),
            "stats": ("GET", self._stats),
            "infer": ("POST", self._infer),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = await self._answer(scope, receive)
        await response.send(send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        try:
            endpoint, request = self._route(scope, receive)
            return await endpoint(request)
        except HttpError as error:
            return error_response(error.status, str(error), *error.headers)
        except EdgepackError as error:
            return _edgepack_error(error)
        except Exception:
            # the outermost place that still knows the request: a defect of ours costs one answer
            logger.exception("request failed", extra={"event": "request-failed"})
            return error_response(500, "internal error; the device's log says more")

    def _route(self, scope: Scope, receive: Receive) -> tuple[Endpoint, Request]:
        path, model, version = scope["path"], "", None
        found = self._fixed.get(path)
        if found is None:
            match = _V2_MODEL.fullmatch(path)
            if match:
                model, version = match["model"], match["version"]
                found = self._verbs.get(match["verb"])
            elif match := _V1_PREDICT.fullmatch(path):
                model, found = match["model"], ("POST", self._predict)
        if found is None:
            raise HttpError(404, f"there is nothing at {path[:200]}")
        method, endpoint = found
        if scope["method"] != method and (scope["method"], method) != ("HEAD", "GET"):
            raise HttpError(405, f"{path[:200]} takes {method}", (b"allow", method.encode()))
        request = Request(scope["method"], dict(scope["headers"]), receive, model, version)
        return endpoint, request

    async def _infer(self, request: Request) -> Response:
        if b"inference-header-content-length" in request.headers:
            self._slot(request).refused_early("bad_request")
            raise HttpError(400, "binary tensor data is not supported; send tensors as JSON")
        return await self._predict_with(self._oip, request)

    async def _predict(self, request: Request) -> Response:
        return await self._predict_with(self._instances, request)

    async def _predict_with(self, codec: Codec, request: Request) -> Response:
        slot = self._slot(request)
        try:
            body = await read_body(request, length_required=True)
        except HttpError as error:
            slot.refused_early("deadline" if error.status == 408 else "bad_request")
            raise
        prediction = await predict(slot, codec, Payload(body), request.version)
        return Response(
            200,
            prediction.encoded.body,
            (
                (b"content-type", b"application/json"),
                (VERSION_HEADER, prediction.version.encode()),
            ),
        )

    async def _live(self, _request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _request: Request) -> Response:
        ready = status.is_ready(self._slots)
        return json_response({"ready": True}) if ready else json_response({"ready": False}, 503)

    async def _server(self, _request: Request) -> Response:
        told = {"name": "edgepack", "version": __version__, "extensions": oip_documents.EXTENSIONS}
        insecure = {"insecure": status.waived(self._waiver)} if self._waiver else {}
        return json_response(told | insecure)

    async def _metadata(self, request: Request) -> Response:
        slot, model = self._model(request)
        return json_response(oip_documents.model_metadata(slot.name, model.description))

    async def _model_ready(self, request: Request) -> Response:
        slot, _ = self._model(request)
        return json_response({"name": slot.name, "ready": True})

    async def _config(self, request: Request) -> Response:
        slot, model = self._model(request)
        return json_response(oip_documents.model_config(slot.name, model.description))

    async def _stats(self, request: Request) -> Response:
        slot, _ = self._model(request)
        return json_response({"model_stats": _model_stats([slot])})

    async def _all_stats(self, _request: Request) -> Response:
        return json_response({"model_stats": _model_stats(self._slots.values())})

    async def _index(self, request: Request) -> Response:
        only_ready = _only_ready(await read_body(request))
        entries = [_index_entry(slot) for slot in self._slots.values()]
        return json_response(
            [entry for entry in entries if entry["state"] == "READY" or not only_ready]
        )

    async def _health(self, _request: Request) -> Response:
        return json_response(self._told())

    async def _metrics(self, _request: Request) -> Response:
        uptime = self._monotonic() - self._started
        body = render_metrics(
            self._slots, uptime, insecure=self._waiver is not None, refusals=self._refusals
        )
        return Response(200, body, ((b"content-type", CONTENT_TYPE),))

    async def _page(self, _request: Request) -> Response:
        headers = (
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
        )
        return Response(200, status.page(self._told()).encode(), headers)

    def _told(self) -> dict[str, Any]:
        uptime = self._monotonic() - self._started
        return status.health(self._slots, self._phase_of, uptime, self._waiver)

    def _slot(self, request: Request) -> Slot:
        slot = self._slots.get(request.model)
        if slot is None:
            raise UnknownModelError(
                f"there is no model {request.model[:80]!r}; "
                f"this device has: {', '.join(sorted(self._slots)) or 'none'}"
            )
        return slot

    def _model(self, request: Request) -> tuple[Slot, ServingModel]:
        slot = self._slot(request)
        model = slot.active
        if model is None:
            raise NoModelError(f"model {slot.name!r} has no bundle that can serve right now")
        if request.version is not None and request.version != model.version:
            raise UnknownModelError(
                f"model {slot.name!r} has no version {request.version[:80]!r}; "
                f"{model.version} is serving"
            )
        return slot, model


def _edgepack_error(error: EdgepackError) -> Response:
    match error:
        case InputError():
            return error_response(400, str(error))
        case UnknownModelError():
            return error_response(404, str(error))
        case OverloadError():
            return error_response(429, str(error), _RETRY)
        case NoModelError():
            return error_response(503, str(error), _RETRY)
        case _:
            return error_response(500, str(error))


def _model_stats(slots: Any) -> list[dict[str, Any]]:
    active: list[tuple[Slot, Tenure]] = [(slot, slot.tenure) for slot in slots if slot.tenure]
    return [
        status.model_stats(slot.name, tenure, slot.last_prediction_ms) for slot, tenure in active
    ]


def _index_entry(slot: Slot) -> dict[str, str]:
    model = slot.active
    if model is None:
        return {"name": slot.name, "state": "UNAVAILABLE", "reason": "no bundle can serve"}
    return {"name": slot.name, "version": model.version, "state": "READY", "reason": ""}


class _IndexRequest(msgspec.Struct, frozen=True):
    ready: bool = False


def _only_ready(body: bytes) -> bool:
    if not body.strip():
        return False
    try:
        return msgspec.json.decode(body, type=_IndexRequest).ready
    except msgspec.DecodeError as error:
        raise HttpError(400, f'expected {{"ready": true or false}} or nothing: {error}') from error
