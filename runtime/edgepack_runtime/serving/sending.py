"""The rest of a request within bounds: its body arrives, and its answer is taken, or it is cut.

uvicorn's httptools protocol waits for both for ever: for bytes that a client sends after it was
answered, and for a client that reads nothing.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from edgepack_runtime.serving.asgi import BODY_SECONDS
from edgepack_runtime.serving.fast import FastProtocol
from edgepack_runtime.serving.refusing import no_room
from edgepack_runtime.serving.room import FREE_BYTES, Room

SEND_SECONDS = 10.0
"""A client that takes nothing of its answer for so long is cut."""

WHOLE_SECONDS = 300.0
"""So long may it take to take all of it."""

REST_SECONDS = BODY_SECONDS + 5.0
"""A body has :data:`.asgi.BODY_SECONDS`, to which the application answers; this is for the rest."""


class BoundedSend(FastProtocol):
    """Bounds the time of a body, and of sending an answer."""

    _in_body = False
    _held = 0
    _unsent = 0
    _cut_at = 0.0
    _room: Room
    _send_timer: asyncio.TimerHandle | None = None
    _body_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Be told of every byte that the client has not taken."""
        super().connection_made(transport)
        # of TLS the limit itself counts as too much, so it is not 0
        transport.set_write_buffer_limits(high=1, low=0)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget_body()
        self._forget_sending()
        self._give_back()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Begin to wait for the rest of a body."""
        super().data_received(data)
        if self._in_body and self._body_timer is None and not self.transport.is_closing():
            self._body_timer = self.loop.call_later(REST_SECONDS, self.transport.abort)

    def on_headers_complete(self) -> None:
        """A body may follow, if there is room for it."""
        self._in_body = True
        if self._find_room():
            super().on_headers_complete()
            return
        ordinary, front = self.app, self.front
        self.app, self.front = no_room, None
        try:
            super().on_headers_complete()
        finally:
            self.app, self.front = ordinary, front

    def on_message_complete(self) -> None:
        """The body is here."""
        self._in_body = False
        self._forget_body()
        super().on_message_complete()
        last: RequestResponseCycle | None = self.cycle
        if self._held and (last is None or last.response_complete):
            self._give_back()

    def on_response_complete(self) -> None:
        """The body is needed no more."""
        self._give_back()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client is slower than the answer."""
        super().pause_writing()
        self._cut_at = self.loop.time() + WHOLE_SECONDS
        self._unsent = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(SEND_SECONDS, self._look_whether_it_reads)

    def resume_writing(self) -> None:
        """The client has taken everything."""
        self._forget_sending()
        super().resume_writing()

    def _find_room(self) -> bool:
        """Take of the room for all connections what this body takes; False when there is none."""
        size = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        if size <= FREE_BYTES or self.front is None or size > self.front.body_bytes:
            # what is too large is refused before it is read
            return True
        # of several requests in a pipeline the first one's end would give back for all
        if self._held or not self.front.room.take(size):
            return False
        self._held, self._room = size, self.front.room
        return True

    def _give_back(self) -> None:
        if self._held:
            self._room.give_back(self._held)
            self._held = 0

    def _look_whether_it_reads(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent or self.loop.time() > self._cut_at:
            self.transport.abort()
            return
        self._unsent = unsent
        self._send_timer = self.loop.call_later(SEND_SECONDS, self._look_whether_it_reads)

    def _forget_sending(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _forget_body(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
