"""What uvicorn refuses by itself, said as every other error is: ``{"error": "..."}``.

Of uvicorn this takes that ``send_400_response`` writes the answer to what is no request, and that
``on_headers_complete`` gives each request to ``app`` unless ``limit_concurrency`` is reached;
``tests/runtime/serving/test_refusing.py`` fails where a release changes that.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from edgepack_runtime.serving.asgi import CLOSE, Header, Receive, Scope, Send, error_response
from edgepack_runtime.serving.errors import NoRoomError
from edgepack_runtime.serving.failure import response_of
from edgepack_runtime.serving.pipelines import BoundedPipeline
from edgepack_runtime.serving.room import NO_ROOM

_RETRY: Header = (b"retry-after", b"1")


class Refusing(BoundedPipeline):
    """uvicorn's protocol with refusals that a client of ours can read."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, and hang up."""
        response = error_response(400, msg, CLOSE)
        headers = (*response.headers, (b"content-length", b"%d" % len(response.body)))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[400], lines, response.body))
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Hand a request on, or refuse it when there are too many."""
        if not self.crowded():
            super().on_headers_complete()
            return
        ordinary, most = self.app, self.limit_concurrency
        self.app, self.limit_concurrency = _too_many, None
        try:
            super().on_headers_complete()
        finally:
            self.app, self.limit_concurrency = ordinary, most

    def crowded(self) -> bool:
        """Whether as many connections are open as may be."""
        most = self.limit_concurrency
        return most is not None and (len(self.connections) >= most or len(self.tasks) >= most)


async def no_room(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Refuse a large body while others take all the memory there is for such."""
    await response_of(NoRoomError(NO_ROOM)).send(send)


async def _too_many(_scope: Scope, _receive: Receive, send: Send) -> None:
    words = "too many connections are open; close one, or come back later"
    await error_response(503, words, _RETRY, CLOSE).send(send)
