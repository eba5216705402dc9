"""The short way of a prediction: a small request on a kept connection is answered in one call.

uvicorn makes a scope, a task and three messages of every request, which costs more than a small
model. A POST to an endpoint that predicts, whose body has a Content-Length, is kept here until its
last byte has come; when the model is quick, the answer is written there and then. Whatever else
comes, and whatever turns out not to be quick, is handed to uvicorn as if it had come this moment:
pipelines, backpressure, limits and the end of the server stay uvicorn's.

Of uvicorn this takes the callbacks of httptools' parser and ``shutdown``, and that ``cycle``,
``flow``, ``tasks``, ``connections``, ``server_state`` and ``timeout_keep_alive_task`` are what they
are in 0.54; ``tests/runtime/serving/test_fast.py`` fails where a release changes them.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    RequestResponseCycle,
)

from edgepack_contract.window import ErrorKind
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.asgi import (
    BODY_SECONDS,
    CLOSE,
    Asgi,
    Header,
    HttpError,
    Receive,
    Response,
    Scope,
    Send,
)
from edgepack_runtime.serving.codec import Encoded
from edgepack_runtime.serving.compression import SMALLEST_BYTES, encoding_for, is_worth_packing
from edgepack_runtime.serving.failure import response_of
from edgepack_runtime.serving.predict import Call
from edgepack_runtime.serving.predictions import CODECS, Predictions, answer_of, packed
from edgepack_runtime.serving.refusing import Refusing
from edgepack_runtime.serving.routes import Route, find_route

MOST_AT_ONCE = 8
"""Requests of one connection that are answered before others have their turn."""

_MOST_PATHS = 256
_NOTHING = Encoded(b"")
_NOT_HERE = frozenset({b"content-encoding", b"transfer-encoding", b"upgrade"})


@dataclass(frozen=True, slots=True)
class Seen:
    """A head that was admitted to the short way.

    Attributes:
        route: Where it leads.
        headers: The headers as they came.
        known: The same by name.
        length: Bytes of the body.
    """

    route: Route
    headers: list[Header]
    known: dict[bytes, bytes]
    length: int


class Front:
    """What the protocol of one listener needs to answer by itself.

    Args:
        predictions: Answers the endpoints that predict.
        guard: Which token a request must bear.

    Attributes:
        guard: The same.
        room: What large bodies take of.
        body_bytes: The most that one body may have.
        ending: Whether the server tells its callers to leave, as :meth:`renew` found it.
        seen: Heads that were admitted, by their bytes.
    """

    def __init__(self, predictions: Predictions, guard: Guard) -> None:
        self.guard = guard
        self.room = predictions.room
        self.body_bytes = predictions.body_bytes
        self.ending = False
        self.seen: dict[bytes, Seen] = {}
        self._predictions = predictions
        self._paths: dict[bytes, Route] = {}
        self._defaults: list[Header] = []
        self._heads: dict[str, bytes] = {}

    def route(self, target: bytes) -> Route | None:
        """Where the target of a request leads, None when that is no plain path to a prediction."""
        route = self._paths.get(target)
        if route is not None or b"%" in target or b"?" in target:
            return route
        route = find_route(target.decode("latin-1"))
        if route is None or route.endpoint not in CODECS:
            return None
        if len(self._paths) < _MOST_PATHS:
            self._paths[target] = route
        return route

    def admits(self, raw: Sequence[Header], headers: dict[bytes, bytes]) -> bool:
        """Whether a request is one that can be answered here, by its head."""
        length = headers.get(b"content-length")
        return (
            length is not None
            and int(length) <= self._predictions.body_bytes
            and _NOT_HERE.isdisjoint(headers)
            and self.guard.admits(raw)
        )

    def call(self, route: Route, headers: dict[bytes, bytes], body: bytes) -> Call:
        """Begin to answer.

        Raises:
            HttpError: See :meth:`.Predictions.begin`.
            EdgepackError: The same, and :func:`.predict.predict`.
        """
        slot, payload = self._predictions.begin(route, headers, body)
        return Call(slot, CODECS[route.endpoint], payload, route.version)

    def renew(self, defaults: list[Header]) -> None:
        """Take up the headers of every answer; uvicorn has a new list of them each second."""
        if defaults is not self._defaults:
            self._defaults = defaults
            self._heads = {}
            # a server that is ending tells its callers so
            self.ending = CLOSE in defaults

    def head(self, version: str) -> bytes:
        """The head of a prediction in JSON by a version, up to the length of its body."""
        head = self._heads.get(version)
        if head is None:
            headers = answer_of(_NOTHING, version).headers
            head = self._heads[version] = _head(200, (*self._defaults, *headers))
        return head

    def refused(self, route: Route, kind: ErrorKind) -> None:
        """Count a request whose body never came."""
        self._predictions.slot(route).refused_early(kind)


class FastProtocol(Refusing):
    """uvicorn's protocol with the short way; without a ``front`` it is uvicorn's."""

    front: Front | None = None
    _route: Route | None = None
    _known: dict[bytes, bytes]
    _parts: list[bytes]
    _way: Route | None = None
    _begun: Asgi | None = None
    _burst = 0
    _too_late: asyncio.TimerHandle | None = None
    _idle: asyncio.TimerHandle | None = None
    _answered_at = 0.0

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a body, but not for ever."""
        self._burst = 0
        super().data_received(data)
        if self._route is not None and self._too_late is None:
            self._too_late = self.loop.call_later(BODY_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """A body that is not whole will not come."""
        if self.front is not None and self._route is not None:
            self.front.refused(self._route, "bad_request")
            self._end()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Let uvicorn finish what has begun."""
        if self._route is not None:
            self._end()
            super().on_headers_complete()
            super().on_body(b"".join(self._parts))
        super().shutdown()

    def on_headers_complete(self) -> None:
        """Choose the way."""
        self._route = self._way = self._find()
        if self._route is None:
            super().on_headers_complete()
        self._parts = []

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        if self._route is None:
            super().on_body(body)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Answer, or begin to."""
        front, route = self.front, self._route
        if front is None or route is None:
            super().on_message_complete()
            return
        self._end()
        body = b"".join(self._parts)
        self._parts = []
        if self.crowded():
            super().on_headers_complete()
            super().on_body(body)
            super().on_message_complete()
            return
        app, self._begun = self._begun or self._answer(front, route, self._known, body), None
        if app is not None:
            self._run(app)

    def _find(self) -> Route | None:
        front, parser = self.front, self.parser
        last: RequestResponseCycle | None = self.cycle
        if (
            front is None
            or (last is not None and not last.response_complete)
            or self._burst >= MOST_AT_ONCE
            or self.flow.write_paused
            or self.expect_100_continue
            or self._is_ending(front)
            or parser.get_method() != b"POST"
            or not parser.should_keep_alive()
        ):
            return None
        route = front.route(self.url)
        if route is None:
            return None
        self._known = known = dict(self.headers)
        # HTTP/1.0 is kept alive by this header only, and not by uvicorn
        if b"connection" in known and parser.get_http_version() != "1.1":
            return None
        return route if front.admits(self.headers, known) else None

    def _is_ending(self, front: Front) -> bool:
        front.renew(self.server_state.default_headers)
        return front.ending

    def _answer(
        self, front: Front, route: Route, known: dict[bytes, bytes], body: bytes
    ) -> Asgi | None:
        """Answer a request; what is left to do of it, None for nothing."""
        try:
            call = front.call(route, known, body)
            if not call.at_once():
                return functools.partial(_finish, call, known)
        except Exception as error:  # noqa: BLE001 - a defect of ours costs one answer
            self._write(response_of(error))
            return None
        app, encoded = None, call.encoded
        if encoded.json_bytes is None and len(encoded.body) < SMALLEST_BYTES:
            front.renew(self.server_state.default_headers)
            self._send(front.head(call.version), encoded.body)
        else:
            response = answer_of(encoded, call.version)
            if is_worth_packing(response) and encoding_for(known) is not None:
                app = functools.partial(_pack, response, known)
            else:
                self._write(response)
        try:
            # the client need not wait for that
            call.settle()
        except Exception as error:  # noqa: BLE001 - a defect of ours, which is logged
            response_of(error)
        return app

    def _run(self, app: Asgi) -> None:
        """Let uvicorn run what takes longer, as the application of this one request."""
        ordinary, self.app = self.app, app
        try:
            super().on_headers_complete()
        finally:
            self.app = ordinary
        super().on_message_complete()

    def _write(self, response: Response) -> None:
        head = _head(response.status, (*self.server_state.default_headers, *response.headers))
        self._send(head, response.body)
        if CLOSE in response.headers:
            self.transport.close()

    def _send(self, head: bytes, body: bytes) -> None:
        self.transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        self._burst += 1
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        # one timer that looks again is cheaper than one for each answer
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        self._idle = None
        if self.transport.is_closing():
            return
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left <= 0 and self._resting():
            self.transport.close()
            return
        wait = left if left > 0 else self.timeout_keep_alive
        self._idle = self.loop.call_later(wait, self._look_whether_idle)

    def _resting(self) -> bool:
        """Whether nothing is asked, and uvicorn does not wait for the next request itself."""
        last: RequestResponseCycle | None = self.cycle
        return (
            self._route is None
            and self.timeout_keep_alive_task is None
            and (last is None or last.response_complete)
        )

    def _give_up(self) -> None:
        route = self._route
        if route is None or self.front is None:
            return
        self._end()
        self.front.refused(route, "deadline")
        words = f"the body did not arrive within {BODY_SECONDS:g} s"
        self._write(response_of(HttpError(408, words, CLOSE)))

    def _end(self) -> None:
        """Collect no more."""
        self._route = None
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


async def _finish(
    call: Call, known: dict[bytes, bytes], _scope: Scope, _receive: Receive, send: Send
) -> None:
    try:
        await call.finish()
        call.settle()
        prediction = call.prediction
        response = await packed(answer_of(prediction.encoded, prediction.version), known)
    except Exception as error:  # noqa: BLE001 - a defect of ours costs one answer
        response = response_of(error)
    await response.send(send)


async def _pack(
    response: Response, known: dict[bytes, bytes], _scope: Scope, _receive: Receive, send: Send
) -> None:
    await (await packed(response, known)).send(send)


@functools.lru_cache(maxsize=64)
def _head(status: int, headers: tuple[Header, ...]) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return STATUS_LINE[status] + lines + b"content-length: "
