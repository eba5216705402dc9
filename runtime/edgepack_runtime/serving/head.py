"""The head of a request within bounds: its bytes, and the time until it is complete.

uvicorn's httptools protocol bounds neither.
"""

from __future__ import annotations

import asyncio

from edgepack_contract.limits import LIMITS
from edgepack_runtime.serving.sending import BoundedSend

HEAD_SECONDS = 10.0


class BoundedHead(BoundedSend):
    """Bounds the head of a request: its bytes, and the time until it is complete."""

    _head_bytes = _fed = _begun_with = _heads_over = 0
    _in_head = True
    _received = b""
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head."""
        # a head that begins in the middle of these bytes is counted from the next ones on
        whole = self._in_head
        self._begun_with = 0
        self._heads_over = 0
        self._fed = len(data)
        self._received = data
        super().data_received(data)
        self._received = b""
        if not self._in_head or self.transport.is_closing():
            return
        if whole and not self._heads_over:
            self._head_bytes += len(data)
        if self._head_bytes > LIMITS.request_header_bytes:
            self.send_400_response("The head of the request is too large.")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head, self._begun_with = True, self._fed

    def on_headers_complete(self) -> None:
        """A head is over; refuse one that is too large."""
        # what began and ended in the same bytes is no larger than they are
        quick = 0 < self._begun_with <= LIMITS.request_header_bytes
        if not quick and self._head_size() > LIMITS.request_header_bytes:
            # httptools turns this into a parser error, to which uvicorn answers 400 and hangs up
            raise ValueError("the head of the request is too large")
        if not self.headers and self.parser.get_http_version() == "0.9":
            raise ValueError("HTTP/0.9 has no heads, and gets no answer that has one")
        self._in_head, self._head_bytes = False, 0
        self._heads_over += 1
        self._cancel_timer()
        super().on_headers_complete()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
