"""Callers that mean harm: each is answered or cut, and others are answered all the while."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from certificate_files import make_token
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2
from world_waiting import eventually

from edgepack_contract.limits import LIMITS
from edgepack_runtime.serving.grpc import service as service_module

SECONDS = 20
SERVICE = "/inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def served(make_world, load, load_echo):
    world = make_world()
    world.add("pump", load("v1", version="1.0.0"))
    world.add("echo", load_echo("float32"))
    return world


@pytest.fixture
def silence():
    """Messages that never come, until the test ends."""
    ended = threading.Event()

    def messages():
        ended.wait(SECONDS)
        return
        yield b""

    yield messages
    ended.set()


def request(model="pump", name="x", rows=1, width=4):
    made = service_pb2.ModelInferRequest(model_name=model)
    made.inputs.add(name=name, datatype="FP32", shape=[rows, width])
    made.raw_input_contents.append(bytes(4 * rows * width))
    return made.SerializeToString()


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    return caught.value.code()


def test_who_says_nothing_is_cut(served, listening, calling, silence, monkeypatch):
    monkeypatch.setattr(service_module, "BODY_SECONDS", 0.05)
    with listening(served) as port:
        call = calling(port).begin("ModelInfer", silence(), timeout=SECONDS)
        assert code_of(call) == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not arrive" in call.details()


def test_who_ends_without_a_message_is_told_so(served, listening, calling):
    with listening(served) as port:
        call = calling(port).begin("ModelInfer", iter([]), timeout=SECONDS)
        assert code_of(call) == grpc.StatusCode.INVALID_ARGUMENT
        assert "without a message" in call.details()


def test_strangers_cannot_hold_calls(served, listening, calling, silence, tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "MOST_CALLS", 4)
    token = make_token(tmp_path / "token")
    with listening(served, token_file=str(tmp_path / "token")) as port:
        caller = calling(port)
        held = [caller.begin("ModelInfer", silence(), timeout=SECONDS) for _ in range(12)]
        # refused although they have not said a word
        assert {code_of(call) for call in held} <= {
            grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED,
        }  # fmt: skip
        bearer = [("authorization", f"Bearer {token}")]
        call = caller.begin("ModelInfer", iter([request()]), metadata=bearer, timeout=SECONDS)
        assert service_pb2.ModelInferResponse.FromString(next(call)).model_name == "pump"


def test_streams_that_stay_open_leave_room_for_others(served, listening, calling, silence):
    with listening(served) as port:
        caller = calling(port)
        held = [caller.begin("ModelStreamInfer", silence()) for _ in range(100)]

        def refused():
            return sum(call.done() for call in held) == 100 - service_module.MOST_STREAMS

        eventually(refused, lambda: f"{sum(call.done() for call in held)} are refused")
        codes = {call.code() for call in held if call.done()}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            row = triton.InferInput("x", [1, 4], "FP32")
            row.set_data_from_numpy(np.zeros((1, 4), np.float32))
            assert client.infer("pump", [row])
        for call in held:
            call.cancel()
        free = caller.begin("ModelStreamInfer", iter([request()]), timeout=SECONDS)
        assert next(free)


def frame(kind, flags, stream, payload):
    """A frame of HTTP/2, RFC 9113 section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def without_window(message):
    """A call whose answer may not be sent: the client never opens its window for data."""
    names = {
        ":method": "POST", ":scheme": "http", ":path": f"{SERVICE}/ModelInfer",
        ":authority": "d", "te": "trailers", "content-type": "application/grpc",
    }  # fmt: skip
    # RFC 7541 section 6.2.2: not indexed, names and values as they are
    head = b"".join(
        b"\x00%c%b%c%b" % (len(name), name.encode(), len(value), value.encode())
        for name, value in names.items()
    )
    body = b"\x00" + struct.pack(">I", len(message)) + message
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    no_window = frame(4, 0, 0, struct.pack(">HI", 4, 0))
    return preface + no_window + frame(1, 4, 1, head) + frame(0, 1, 1, body)


def test_who_does_not_take_an_answer_is_in_nobodys_way(served, listening, calling, monkeypatch):
    monkeypatch.setattr(service_module, "SEND_SECONDS", 0.1)
    monkeypatch.setattr(service_module, "MOST_CALLS", 1)
    with listening(served) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        before = served.call(lambda: served.slots["pump"].totals.answered)
        slow.sendall(without_window(request()))
        eventually(
            lambda: served.call(lambda: served.slots["pump"].totals.answered) > before,
            lambda: "the slow one is answered",
        )
        caller = calling(port)

        def answered():
            call = caller.begin("ModelInfer", iter([request()]), timeout=SECONDS)
            try:
                return next(call)
            except grpc.RpcError:
                return None

        eventually(answered, lambda: "another call is answered")


def test_a_message_over_the_limit_ends_its_call_only(served, listening, calling):
    with listening(served, body_bytes=4096) as port:
        caller = calling(port)
        call = caller.begin("ModelInfer", iter([request(rows=4000)]), timeout=SECONDS)
        assert code_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert next(caller.begin("ModelInfer", iter([request()]), timeout=SECONDS))


def measured(number, value):
    """A field of bytes, as protobuf writes it."""
    size, length = len(value), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + value


def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


NAMED = measured(1, b"pump")
OVER = LIMITS.request_json_bytes + 16
TENSOR = service_pb2.ModelInferRequest.InferInputTensor(
    name="x", datatype="FP32", shape=[OVER // 16, 4]
).SerializeToString()
SWELLING = {
    "typed contents": measured(5, TENSOR + measured(5, measured(6, bytes(OVER)))),
    "inputs": measured(5, b"") * (OVER // 2),
    "outputs": measured(6, b"") * (OVER // 2),
    "raw contents": measured(7, b"") * (OVER // 2),
    "small ones": measured(5, b"") * (OVER // 64),
}


@pytest.mark.parametrize("name", SWELLING)
def test_what_would_swell_is_refused_before_it_is_read(served, listening, calling, name):
    with listening(served) as port:
        caller = calling(port)
        assert next(caller.begin("ModelInfer", iter([request()]), timeout=SECONDS))
        totals = served.slots["pump"].totals
        before = served.call(lambda: totals.errors["bad_request"])
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        start = peak_bytes()
        call = caller.begin("ModelInfer", iter([NAMED + SWELLING[name]]), timeout=SECONDS)
        assert code_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("use raw_input_contents" in call.details()) == (name == "typed contents")
        # copies of the message, of the client's and of the server's
        assert peak_bytes() - start < 10 * OVER
        assert served.call(lambda: totals.errors["bad_request"]) == before + 1


def test_what_is_raw_may_be_large(served, listening, calling):
    rows = OVER // 16
    with listening(served) as port:
        call = calling(port, max_receive_message_length=-1).begin(
            "ModelInfer", iter([request(rows=rows)]), timeout=SECONDS
        )
        answer = service_pb2.ModelInferResponse.FromString(next(call))
        assert answer.outputs[0].shape[0] == rows


def test_a_stream_goes_on_after_what_would_swell(served, listening, calling):
    large = NAMED + SWELLING["typed contents"]
    with listening(served) as port:
        call = calling(port).begin("ModelStreamInfer", iter([large, request()]), timeout=SECONDS)
        first, second = map(service_pb2.ModelStreamInferResponse.FromString, call)
        assert "use raw_input_contents" in first.error_message
        assert second.infer_response.model_name == "pump"
