"""Python, set up for a process that answers within fractions of a millisecond."""

from __future__ import annotations

import ctypes
import gc
import sys

from edgepack_contract.limits import MIB
from edgepack_contract.message_types import prepare_types

SWITCH_SECONDS = 0.0005
"""After so long a thread that installs or publishes lets the one that answers run."""

MAPPED_BYTES = 2 * MIB
"""What is allocated from this size on has pages of its own, which go back when it is freed."""

TRIM_BYTES = 4 * MIB
"""So much may be free at the end of the heap before it goes back."""

# mallopt(3); the numbers are those of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def settle() -> None:
    """To be called when everything is imported, before the work begins.

    What was imported is left out of garbage collection for good: sixty thousand objects, which are
    never garbage, and over which a full collection takes some ten milliseconds.
    """
    prepare_types()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    _keep_pages()


def _keep_pages() -> None:
    """Keep the pages of a read from a socket, and of an image, where the C library is glibc.

    asyncio reads into 256 KiB and gives back what was not filled. glibc makes a mapping of its own
    of every such read, which takes three system calls and a page fault: longer than all the rest of
    a small request. A body of 600 KiB has a page fault for every 4 KiB of it: half the time that
    the request takes.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        choose(_M_TRIM_THRESHOLD, TRIM_BYTES)
