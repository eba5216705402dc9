"""Memory for what callers send: one budget for the bodies of all connections."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgepack_contract.limits import KIB, MIB
from edgepack_runtime.serving.errors import NoRoomError

FREE_BYTES = 256 * KIB
"""Bodies up to this size are not counted: all connections together cannot hold much of them."""

SHARE = 4
NO_ROOM = "large requests of others take all the memory there is for them; come back later"
MOST_BYTES = 512 * MIB


class Room:
    """Bytes that large bodies may take together; used on the event loop.

    Args:
        size: How many.

    Attributes:
        left: How many are not taken.
    """

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        """Take room for a body, if there is."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        self.left += size

    @contextlib.contextmanager
    def holding(self) -> Iterator[Hold]:
        """Room for one body whose size nobody knows before it is over; given back at the end."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.give_back(hold.size)


class Hold:
    """What one body has taken.

    Attributes:
        size: How many bytes.
    """

    def __init__(self, room: Room) -> None:
        self.size = 0
        self._room = room

    def grow(self, size: int) -> None:
        """Take what a body of ``size`` bytes takes.

        Raises:
            NoRoomError: Others have it.
        """
        more = size - self.size
        if size <= FREE_BYTES or more <= 0:
            return
        if not self._room.take(more):
            raise NoRoomError(NO_ROOM)
        self.size = size


def room_size(body_bytes: int, available_bytes: int | None) -> int:
    """How much large bodies may take: a quarter of what the machine has left, one body at least.

    Args:
        body_bytes: The most that one body may have.
        available_bytes: What this process may still take, None when the machine does not say.
    """
    share = MOST_BYTES if available_bytes is None else available_bytes // SHARE
    return max(body_bytes, min(share, MOST_BYTES))
