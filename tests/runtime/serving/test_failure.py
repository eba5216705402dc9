from __future__ import annotations

import json

import pytest

from edgepack_contract.errors import ConfigError
from edgepack_runtime.inference.errors import (
    BadRequestError,
    ModelRunError,
    NonfiniteInputError,
    ShapeError,
)
from edgepack_runtime.serving.asgi import CLOSE, HttpError
from edgepack_runtime.serving.errors import (
    DeadlineError,
    NoModelError,
    NonfiniteOutputError,
    OverloadError,
    UnknownModelError,
)
from edgepack_runtime.serving.failure import response_of

WORDS = "what was wrong"


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (HttpError(413, WORDS, CLOSE), 413, False),
        (BadRequestError(WORDS), 400, False),
        (ShapeError(WORDS), 400, False),
        (NonfiniteInputError(WORDS), 400, False),
        (UnknownModelError(WORDS), 404, False),
        (OverloadError(WORDS), 429, True),
        (NoModelError(WORDS), 503, True),
        (DeadlineError(WORDS), 504, False),
        (ModelRunError(WORDS), 500, False),
        (NonfiniteOutputError(WORDS), 500, False),
        (ConfigError(WORDS), 500, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_has_one_answer(error, status, retry):
    response = response_of(error)
    assert response.status == status
    assert json.loads(response.body) == {"error": WORDS}
    assert (b"retry-after" in dict(response.headers)) == retry


def test_a_defect_is_logged_and_not_shown(caplog):
    response = response_of(KeyError("secret"))
    assert response.status == 500
    assert b"secret" not in response.body
    (record,) = caplog.records
    assert record.event == "request_failed"
    assert "secret" in caplog.text
