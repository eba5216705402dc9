"""For processes under libfaketime 0.9: only dates shall be false, not how long one waits.

With the monotonic clock left alone it takes the absolute times of ``clock_nanosleep`` for those of
the calendar, so that every ``time.sleep`` of Python 3.11 fails.
"""

from __future__ import annotations

import select
import time


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep
