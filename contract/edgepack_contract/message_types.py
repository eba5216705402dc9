"""msgspec's knowledge of every type of message, made in one thread.

What msgspec 0.22 knows of a Struct it puts together when the type is first read, in several steps,
and a thread that reads the same type between them ends the process by SIGSEGV.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec


def prepare_types() -> int:
    """Let msgspec look at every Struct that is imported; to be called before threads are made.

    Returns:
        How many there are.
    """
    types = set(_below(msgspec.Struct))
    for one in types:
        msgspec.json.Decoder(one)
    return len(types)


def _below(parent: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for one in parent.__subclasses__():
        yield one
        yield from _below(one)
