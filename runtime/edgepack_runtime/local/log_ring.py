"""The daemon's last log lines, kept in memory for whoever asks at the device."""

from __future__ import annotations

import logging
from collections import deque

from edgepack_runtime.logs import JsonFormatter

MOST_LINES = 1000


class LogRing(logging.Handler):
    """Keeps the newest :data:`MOST_LINES` lines, each bounded by its formatter."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - a line that cannot be made must not end its caller
            self._lines.append('{"message": "a log line could not be made"}')

    def lines(self) -> list[str]:
        """The lines, oldest first."""
        return list(self._lines)
