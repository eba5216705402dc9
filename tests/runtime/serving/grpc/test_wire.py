"""How much there is to be made of a request is known before it is read."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from edgepack_contract.limits import LIMITS
from edgepack_runtime.inference.errors import BadRequestError
from edgepack_runtime.serving.asgi import HttpError
from edgepack_runtime.serving.grpc.wire import MOST_PARTS, check_parts


def message(**fields):
    return service_pb2.ModelInferRequest(**fields).SerializeToString()


def test_everything_but_raw_contents_counts():
    check_parts(b"")
    rest = len(message(raw_input_contents=[bytes(LIMITS.request_json_bytes)])) - (
        LIMITS.request_json_bytes
    )
    # a field of bytes of one million has as long a head as one of sixteen
    check_parts(message(raw_input_contents=[bytes(LIMITS.request_json_bytes)], id="1"))
    check_parts(message(id="1" * (LIMITS.request_json_bytes - rest)))
    with pytest.raises(HttpError, match="use raw_input_contents") as caught:
        check_parts(message(id="1" * (LIMITS.request_json_bytes - rest + 1)))
    assert caught.value.status == 413


def test_parts_are_counted():
    check_parts(message(raw_input_contents=[b""] * MOST_PARTS))
    with pytest.raises(HttpError, match="more than 4096") as caught:
        check_parts(message(raw_input_contents=[b""] * (MOST_PARTS + 1)))
    assert caught.value.status == 413


def test_fields_that_nobody_knows_are_passed_over():
    check_parts(b"\xa0\x06\xff\x01" + b"\xa1\x06" + bytes(8) + b"\xa5\x06" + bytes(4))


@pytest.mark.parametrize(
    "raw",
    [b"\x0a", b"\x0a\x02a", b"\xff" * 40, b"\x0b", b"\x0e", b"\x09\x00", b"\x0a" + b"\xff" * 9],
    ids=lambda raw: raw[:3].hex(),
)
def test_what_is_no_message_is_refused(raw):
    with pytest.raises(BadRequestError, match="not a ModelInferRequest"):
        check_parts(raw)
