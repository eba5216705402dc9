"""The daemon's log: a line for each event, on standard error, which may be gone, full or stuck.

Nothing is logged for each request. Every call names its event (``extra={"event": ...}``);
``docs/logs.md`` lists them.
"""

from __future__ import annotations

import json
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TextIO

from edgepack_runtime.config import LogConfig

LINE_BYTES = 4096
"""POSIX's smallest PIPE_BUF on Linux: a pipe that is ready takes so much without blocking."""

MESSAGE_CHARACTERS = 1000
TRACE_CHARACTERS = 2000
BURST = 10
BURST_SECONDS = 60.0
MOST_KEYS = 512

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_UNNAMED = "other"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII, with the stable names that a call gives in ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON of at most :data:`LINE_BYTES`."""
        told = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            # libraries name no events
            "event": _UNNAMED,
            "message": record.getMessage()[:MESSAGE_CHARACTERS],
            **told,
        }
        if record.exc_info:
            # the end of a traceback says what happened
            line["error"] = self.formatException(record.exc_info)[-TRACE_CHARACTERS:]
        text = json.dumps(line, default=str)
        if len(text) < LINE_BYTES:
            return text
        # ASCII takes up to six bytes for a character of the message
        short = {key: line[key] for key in ("time", "level", "event")}
        return json.dumps(short | {"message": line["message"][:400], "cut": True})


class Repeats(logging.Filter):
    """Lets an event through :data:`BURST` times in :data:`BURST_SECONDS`, then counts it.

    The first line after that time says how many were left out, as ``left_out``. Each phase of each
    slot is an event of its own, or two installs in a minute would leave out how the second ended.

    Args:
        monotonic: Seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is to be written."""
        event = getattr(record, "event", "") or str(record.msg)
        place = getattr(record, "slot", ""), getattr(record, "phase", "")
        key = (record.name, event, *place)
        now = self._monotonic()
        with self._lock:
            since, count = self._seen.get(key, (now, 0))
            if now - since >= BURST_SECONDS:
                if count > BURST:
                    record.left_out = count - BURST
                since, count = now, 0
            if key not in self._seen and len(self._seen) >= MOST_KEYS:
                self._seen.clear()
            self._seen[key] = (since, count + 1)
        return count < BURST


class LineHandler(logging.Handler):
    """Writes lines to a file descriptor, and drops what it does not take.

    A daemon whose log is a full disk, a closed pipe or a reader that hangs must go on serving, so
    nothing here waits and nothing here fails. Once lines are taken again, how many were lost is
    told.

    Args:
        fd: Where to.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, if there is room for it."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a line that cannot be made must not end its caller
            line = f"a log line of {record.name} could not be made: {error!r}"[:MESSAGE_CHARACTERS]
        if self.lost:
            words = f"{self.lost} lines before this one were lost"
            told = logging.makeLogRecord(
                {"name": __name__, "msg": words, "levelname": "WARNING", "event": "log_lost"}
            )
            if not self._write(self.format(told)):
                self.lost += 1
                return
            self.lost = 0
        self.lost += not self._write(line)

    def _write(self, line: str) -> bool:
        raw = line.encode(errors="backslashreplace")[: LINE_BYTES - 1] + b"\n"
        try:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            return bool(poll.poll(0)) and os.write(self._fd, raw) == len(raw)
        except (OSError, ValueError):
            return False


def configure(config: LogConfig, stream: TextIO) -> None:
    """Have everything logged go to ``stream``; may be called again with other settings.

    Args:
        config: Level and format.
        stream: A terminal gets text with ``auto``, anything else JSON.
    """
    text = config.format == "text" or (config.format == "auto" and stream.isatty())
    handler = LineHandler(stream.fileno())
    handler.setFormatter(
        logging.Formatter("%(levelname)s: %(message)s") if text else JsonFormatter()
    )
    handler.addFilter(Repeats())
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, LineHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(config.level.upper())
    # uvicorn tells of each bad request; the metrics count them
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(max(root.level, logging.WARNING))
