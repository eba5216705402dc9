"""Which error is which answer: one table, whatever way a request came in."""

from __future__ import annotations

import logging

from edgepack_contract.errors import EdgepackError
from edgepack_runtime.inference.errors import InputError
from edgepack_runtime.serving.asgi import CLOSE, Header, HttpError, Response, error_response
from edgepack_runtime.serving.errors import (
    DeadlineError,
    NoModelError,
    NoRoomError,
    OverloadError,
    UnknownModelError,
)

logger = logging.getLogger(__name__)

_RETRY: Header = (b"retry-after", b"1")

_ANSWERS: tuple[tuple[type[EdgepackError], int, tuple[Header, ...]], ...] = (
    (InputError, 400, ()),
    (UnknownModelError, 404, ()),
    (OverloadError, 429, (_RETRY,)),
    (NoModelError, 503, (_RETRY,)),
    (NoRoomError, 503, (_RETRY, CLOSE)),
    (DeadlineError, 504, ()),
    (EdgepackError, 500, ()),
)
"""The first that fits; what is not in it is a defect."""


def response_of(error: Exception) -> Response:
    """The answer to a request that failed with ``error``; a defect of ours is logged."""
    if isinstance(error, HttpError):
        return error_response(error.status, str(error), *error.headers)
    for kind, status, headers in _ANSWERS:
        if isinstance(error, kind):
            return error_response(status, str(error), *headers)
    logger.error("request failed", exc_info=error, extra={"event": "request_failed"})
    return error_response(500, "internal error; the device's log says more")
