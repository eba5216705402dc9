"""Heads that were seen before: a client that asks again sends the same bytes again.

httptools parses every head once. What it found is kept with the very bytes; a request that begins
with them, and is whole, needs no parser. What can change between two requests (token, slots,
connections, the end of the server) is looked at each time.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from edgepack_contract.limits import KIB
from edgepack_runtime.serving.fast import Front, Seen
from edgepack_runtime.serving.head import BoundedHead

MOST_HEADS = 256
MOST_HEAD_BYTES = 4 * KIB

_END = b"\r\n\r\n"


class Repeats(BoundedHead):
    """The protocol of a listener: :class:`BoundedHead`, which parses no head twice."""

    def data_received(self, data: bytes) -> None:
        """Answer a whole request whose head is known; parse anything else."""
        front = self.front
        if front is None or self._in_head or self._in_body:
            super().data_received(data)
            return
        place = data.find(_END) + len(_END)
        head = data[:place]
        seen = front.seen.get(head)
        if seen is None:
            super().data_received(data)
            self._remember(front, head, len(data) - place)
            return
        if len(data) - place == seen.length and self._is_free(front, seen):
            self._unset_keepalive_if_required()
            # what is left to do is done as soon as the parser has come to the end of the request
            self._begun = self._answer(front, seen.route, seen.known, data[place:])
            if self._begun is None:
                return
        super().data_received(data)

    def _is_free(self, front: Front, seen: Seen) -> bool:
        """Whether a request of this head would be answered now, as :class:`FastProtocol` asks."""
        last: RequestResponseCycle | None = self.cycle
        return not (
            (last is not None and not last.response_complete)
            or self.flow.write_paused
            or self._is_ending(front)
            or self.crowded()
            or not front.guard.admits(seen.headers)
        )

    def _remember(self, front: Front, head: bytes, length: int) -> None:
        """Keep a head, if the bytes were one request and no more."""
        route = self._way
        if (
            route is None
            or self._heads_over != 1
            or self._in_head
            or self._in_body
            or len(head) > MOST_HEAD_BYTES
            # where the parser saw another end than the first empty line
            or int(self._known[b"content-length"]) != length
        ):
            return
        if len(front.seen) >= MOST_HEADS:
            front.seen.clear()
        front.seen[head] = Seen(route, self.headers, self._known, length)
