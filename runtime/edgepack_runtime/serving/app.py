"""The HTTP application of a device: what is at each path."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from edgepack_contract import __version__
from edgepack_contract.gate import Waiver
from edgepack_contract.limits import KIB, LIMITS
from edgepack_runtime.serving import docs_page, oip_documents, openapi, repository, status
from edgepack_runtime.serving.asgi import (
    CLOSE,
    Header,
    HttpError,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    json_response,
    read_body,
)
from edgepack_runtime.serving.compression import encoding_of, unpack
from edgepack_runtime.serving.errors import NoModelError, UnknownModelError
from edgepack_runtime.serving.failure import response_of
from edgepack_runtime.serving.metrics import CONTENT_TYPE, render_metrics
from edgepack_runtime.serving.predictions import CODECS, Predictions, packed
from edgepack_runtime.serving.residents import Tenure
from edgepack_runtime.serving.room import Hold
from edgepack_runtime.serving.routes import Endpoint, Route, find_route
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.telemetry.backlog import Backlog

Answering = Callable[[Route, Request], Awaitable[Response]]

ORDER_BYTES = 64 * KIB
"""Of a body that orders something: a list of models, a load."""

_HTML: tuple[Header, ...] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
)


class App:
    """An ASGI application over slots.

    Args:
        slots: The slots by name; looked at anew for each request.
        phase_of: Where the installation of a slot stands, None when nobody knows.
        monotonic: Seconds, for the uptime.
        waiver: Why the daemon runs although it is insecure, None when it is not.
        refusals: How many documents were refused, by code; looked at anew for each request.
        body_bytes: The most that the body of a prediction may hold, unpacked.
        backlog: What waits to be sent to the fleet, None where nothing is.
        asked_by_mqtt: How many requests came by the broker, by what became of them; None without.

    Attributes:
        predictions: Answers what predicts.
        ending: Set when the daemon is about to end: it is not ready any more, and still answers.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        *,
        phase_of: status.PhaseOf = lambda _slot: None,
        monotonic: Callable[[], float] = time.monotonic,
        waiver: Waiver | None = None,
        refusals: Mapping[str, int] | None = None,
        body_bytes: int = LIMITS.request_body_bytes,
        backlog: Callable[[], Backlog | None] = lambda: None,
        asked_by_mqtt: Mapping[str, int] | None = None,
    ) -> None:
        self.predictions = Predictions(slots, body_bytes)
        self.ending = False
        self._slots = slots
        self._phase_of = phase_of
        self._monotonic = monotonic
        self._started = monotonic()
        self._waiver = waiver
        self._backlog = backlog
        self._asked_by_mqtt = asked_by_mqtt
        self._refusals = {} if refusals is None else refusals
        self._answers: dict[Endpoint, Answering] = {
            Endpoint.PAGE: self._page,
            Endpoint.HEALTH: self._health,
            Endpoint.READY: self._ready,
            Endpoint.METRICS: self._metrics,
            Endpoint.DOCS: self._docs,
            Endpoint.OPENAPI: self._openapi,
            Endpoint.MODEL_INFO: self._model_info,
            Endpoint.V1_MODELS: self._models,
            Endpoint.V1_MODEL: self._model_ready,
            Endpoint.V2_SERVER: self._server,
            Endpoint.V2_LIVE: self._live,
            Endpoint.V2_READY: self._ready,
            Endpoint.V2_ALL_STATS: self._all_stats,
            Endpoint.V2_METADATA: self._metadata,
            Endpoint.V2_MODEL_READY: self._model_ready,
            Endpoint.V2_CONFIG: self._config,
            Endpoint.V2_STATS: self._stats,
            Endpoint.V2_INDEX: self._index,
            Endpoint.V2_LOAD: self._load,
            Endpoint.V2_UNLOAD: self._unload,
            **dict.fromkeys(CODECS, self._predict),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = await self._answer(scope, receive)
        await response.send(send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        try:
            route = _route(scope)
            if scope["method"] == "OPTIONS":
                return _options(route)
            request = Request(scope["method"], dict(scope["headers"]), receive)
            response = await self._answers[route.endpoint](route, request)
            # what predicts has seen to that itself
            done = route.endpoint in CODECS
            return response if done else await packed(response, request.headers)
        except Exception as error:  # noqa: BLE001 - response_of logs it
            # the outermost place that still knows the request: a defect of ours costs one answer
            return response_of(error)

    async def _predict(self, route: Route, request: Request) -> Response:
        with self.predictions.room.holding() as hold:
            body = await self._body(route, request, hold)
            return await self.predictions.answer(route, request.headers, body)

    async def _body(self, route: Route, request: Request, hold: Hold) -> bytes:
        slot, most = self.predictions.slot(route), self.predictions.body_bytes
        # the protocol has taken room for a length that it was told
        grown = {} if b"content-length" in request.headers else {"grown": hold.grow}
        try:
            encoding_of(request.headers)
            return await read_body(request, most, length_required=True, **grown)
        except HttpError as error:
            slot.refused_early("deadline" if error.status == 408 else "bad_request")
            raise

    async def _live(self, _route: Route, _request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _route: Route, _request: Request) -> Response:
        ready = not self.ending and status.is_ready(self._slots)
        return json_response({"ready": True}) if ready else json_response({"ready": False}, 503)

    async def _server(self, _route: Route, _request: Request) -> Response:
        told = {
            "name": "edgepack",
            "version": __version__,
            "extensions": oip_documents.EXTENSIONS,
        }
        insecure = {"insecure": status.waived(self._waiver)} if self._waiver else {}
        return json_response(told | insecure)

    async def _models(self, _route: Route, _request: Request) -> Response:
        return json_response({"models": sorted(self._slots)})

    async def _metadata(self, route: Route, _request: Request) -> Response:
        slot, asked = self._model(route)
        versions = [one.model.version for one in status.tenures(slot)]
        told = oip_documents.model_metadata(slot.name, asked.model.description, versions)
        return json_response(told)

    async def _model_ready(self, route: Route, _request: Request) -> Response:
        slot, _ = self._model(route)
        return json_response({"name": slot.name, "ready": True})

    async def _model_info(self, route: Route, _request: Request) -> Response:
        slot, asked = self._model(route)
        return json_response(status.model_info(slot.name, asked.model))

    async def _config(self, route: Route, _request: Request) -> Response:
        slot, asked = self._model(route)
        return json_response(oip_documents.model_config(slot.name, asked.model.description))

    async def _stats(self, route: Route, _request: Request) -> Response:
        slot, asked = self._model(route)
        told = status.tenures(slot) if route.version is None else [asked]
        return json_response({"model_stats": [status.model_stats(slot, one) for one in told]})

    async def _all_stats(self, _route: Route, _request: Request) -> Response:
        each = [(slot, one) for slot in self._slots.values() for one in status.tenures(slot)]
        return json_response({"model_stats": [status.model_stats(*one) for one in each]})

    async def _index(self, _route: Route, request: Request) -> Response:
        return json_response(repository.index(self._slots, await _order(request)))

    async def _load(self, route: Route, request: Request) -> Response:
        repository.load(self.predictions.slot(route), await _order(request))
        return Response(200, b"", ())

    async def _unload(self, route: Route, request: Request) -> Response:
        repository.unload(self.predictions.slot(route), await _order(request))
        return Response(200, b"", ())

    async def _health(self, _route: Route, _request: Request) -> Response:
        return json_response(self._told())

    async def _metrics(self, _route: Route, _request: Request) -> Response:
        uptime = self._monotonic() - self._started
        body = render_metrics(
            self._slots,
            uptime,
            insecure=self._waiver is not None,
            refusals=self._refusals,
            phase_of=self._phase_of,
            backlog=self._backlog(),
            asked_by_mqtt=self._asked_by_mqtt,
        )
        return Response(200, body, ((b"content-type", CONTENT_TYPE),))

    async def _page(self, _route: Route, _request: Request) -> Response:
        return Response(200, status.page(self._told()).encode(), _HTML)

    async def _openapi(self, _route: Route, _request: Request) -> Response:
        return json_response(openapi.document(self._slots))

    async def _docs(self, _route: Route, _request: Request) -> Response:
        return Response(200, docs_page.page(openapi.document(self._slots)).encode(), _HTML)

    def _told(self) -> dict[str, Any]:
        uptime = self._monotonic() - self._started
        return status.health(self._slots, self._phase_of, uptime, self._waiver)

    def _model(self, route: Route) -> tuple[Slot, Tenure]:
        slot = self.predictions.slot(route)
        active, asked = slot.tenure, slot.of_version(route.version)
        if active is None or not slot.ready:
            raise NoModelError(slot.why_unready)
        if asked is None:
            raise UnknownModelError(
                f"model {slot.name!r} has no version {(route.version or '')[:80]!r}; "
                f"{active.model.version} is serving"
            )
        return slot, asked


def _route(scope: Scope) -> Route:
    path, method = scope["path"], scope["method"]
    route = find_route(path)
    if route is None:
        raise HttpError(404, f"there is nothing at {path[:200]}")
    allowed = route.endpoint.allow
    if method not in allowed.split(", "):
        raise HttpError(
            405, f"{path[:200]} takes {route.endpoint.method}", (b"allow", allowed.encode())
        )
    return route


def _options(route: Route) -> Response:
    return Response(200, b"", ((b"allow", route.endpoint.allow.encode()),))


async def _order(request: Request) -> bytes:
    if b"origin" in request.headers:
        # a page of any site can have a browser send this to the machine that it runs on
        raise HttpError(403, "this is not for pages in a browser", CLOSE)
    encoding = encoding_of(request.headers)
    body = await read_body(request, ORDER_BYTES)
    return body if encoding is None else unpack(encoding, body, ORDER_BYTES)
