"""Requests that a client sends without waiting for their answers, within a bound.

uvicorn's httptools protocol answers them in their order, and reads on after each answer: who sends
faster than it is answered fills the memory with requests that wait.

Of uvicorn this takes that ``pipeline`` has what waits, and that all reading is paused and resumed
by ``flow``; ``tests/runtime/serving/test_pipelines.py`` fails where a release changes that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

WAITING = 16
"""While so many requests of one connection wait, no more are read."""

MOST_WAITING = 1024
"""What was read at once may have so many; whoever sends more is cut."""


class BoundedPipeline(HttpToolsProtocol):
    """uvicorn's protocol, which reads on when few requests wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to read."""
        super().connection_made(transport)
        self.flow = _BoundedFlow(transport, self.pipeline)

    def on_headers_complete(self) -> None:
        """Let a request wait, or cut a client that has too many."""
        if len(self.pipeline) >= MOST_WAITING:
            self.transport.abort()
            # httptools turns this into a parser error, so that the rest is not looked at
            raise ValueError("too many requests wait for their turn")
        super().on_headers_complete()


class _BoundedFlow(FlowControl):
    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if len(self._waiting) < WAITING:
            super().resume_reading()
