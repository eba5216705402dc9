"""Clients that mean harm, over raw sockets: each is answered or cut, and others are served."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import threading

import pytest
from certificate_files import make_tls, make_token
from tests.runtime.serving.conftest import World
from world_waiting import eventually

from edgepack_runtime.config import OpsConfig, ServeConfig
from edgepack_runtime.serving import asgi as asgi_module
from edgepack_runtime.serving import head as head_module
from edgepack_runtime.serving import sending as sending_module
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.fast import Front

ROW = [0.5, -1.0, 2.0, 0.0]
BODY = json.dumps({"instances": [ROW]}).encode()
PREDICT = "/v1/models/pump:predict"
SECONDS = 30.0
CODES = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@pytest.fixture(scope="module", params=["short way", "uvicorn's way"])
def place(request, load):
    """A server with a model, on TCP, whose predictions go one way."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "short way":
            patch.setattr(Front, "route", lambda _self, _target: None)
        world = World()
        try:
            world.add("pump", load("v"))
            world.start()
            yield ("127.0.0.1", world.server.port)
        finally:
            world.close()


def post(target=PREDICT, body=BODY, *lines, length=None, close=True):
    head = [f"POST {target} HTTP/1.1", "host: d", *lines]
    if length is not False:
        head.append(f"content-length: {len(body) if length is None else length}")
    if close:
        head.append("connection: close")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def get(target, *lines, version="HTTP/1.1"):
    head = [f"GET {target} {version}", "connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


def chunked(body, size):
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def talk(place, *parts, family=socket.AF_INET):
    """Say everything, and return what came back until the server hung up."""
    with socket.socket(family) as connection:
        connection.settimeout(SECONDS)
        connection.connect(place)
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    return bytes(answer)


def codes(answer):
    return [int(code) for code in CODES.findall(answer)]


GOOD = post()
CLOSE = b"connection: close\r\n"
CHUNKED = ("transfer-encoding: chunked",)
TABLE = {
    "good": (GOOD, 200),
    "chunks of one byte": (post(PREDICT, chunked(BODY, 1), *CHUNKED, length=False), 200),
    "chunks of one byte, a thousand": (
        post(PREDICT, chunked(BODY + b" " * 1000, 1), *CHUNKED, length=False),
        200,
    ),
    "chunks with extensions": (
        post(PREDICT, b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), *CHUNKED, length=False),
        200,
    ),
    "chunks with a trailer": (
        post(PREDICT, chunked(BODY, 8)[:-2] + b"x: y\r\n\r\n", *CHUNKED, length=False),
        200,
    ),
    "expect continue": (post(PREDICT, BODY, "expect: 100-continue"), 200),
    "expect something": (post(PREDICT, BODY, "expect: 200-ok"), 200),
    "many headers": (post(PREDICT, BODY, *[f"x-{n}: {n}" for n in range(10_000)]), 400),
    "head of 64 KiB": (post(PREDICT, BODY, f"x: {'a' * 65536}"), 400),
    "target of 64 KiB": (get("/" + "a" * 65536), 400),
    "line feeds only": (b"GET /health HTTP/1.1\n\n", 400),
    "ten thousand equal headers": (get("/health", *["x: 1"] * 10_000), 400),
    "null byte in a header": (get("/health", "x: a\0b"), 400),
    "header without a name": (get("/health", ": x"), 400),
    "header that goes on": (get("/health", "x: a", " b"), 400),
    "name with a space": (get("/health", "x y: a"), 400),
    "http 0.9": (b"GET /health\r\n\r\n", 400),
    "http 1.0": (get("/health", version="HTTP/1.0"), 200),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "http 2 by an upgrade": (
        get("/health", "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AA"),
        200,
    ),
    "version 9": (get("/health", version="HTTP/9.9"), 400),
    "tls on a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64, 400),
    "length and chunks": (post(PREDICT, chunked(BODY, 8), *CHUNKED), 400),
    "chunks and length": (post(PREDICT, BODY, "content-length: 5"), 400),
    "negative length": (post(length="-1"), 400),
    "length with a plus": (post(length="+5"), 400),
    "hexadecimal length": (post(length="0x5"), 400),
    "length in digits that are no ASCII": (post(length="\xb2"), 400),
    "length of nothing": (post(length=""), 400),
    "two lengths that agree": (post(PREDICT, BODY, f"content-length: {len(BODY)}"), 400),
    "length in words": (post(length="five"), 400),
    "length beyond 64 bits": (post(length="9" * 30), 400),
    "huge length": (post(length="99999999999999"), 413),
    "no length": (post(PREDICT, b"", length=False), 411),
    "empty body": (post(PREDICT, b""), 400),
    "chunk size that is none": (post(PREDICT, b"zz\r\n", *CHUNKED, length=False), 400),
    "chunk size beyond 64 bits": (post(PREDICT, b"f" * 20 + b"\r\n", *CHUNKED, length=False), 400),
    "unknown transfer encoding": (post(PREDICT, BODY, "transfer-encoding: gzip"), 400),
    "unknown method": (b"BREW /health HTTP/1.1\r\n\r\n", 400),
    "method in small letters": (b"get /health HTTP/1.1\r\n\r\n", 400),
    "delete": (b"DELETE /health HTTP/1.1\r\nconnection: close\r\n\r\n", 405),
    "connect": (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nconnection: close\r\n\r\n", (400, 404)),
    "websocket": (get("/health", "upgrade: websocket", "connection: upgrade"), 200),
    "no host": (b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", 200),
    "bad host": (get("/health", "host: ../../etc\\passwd"), 200),
    "two hosts": (get("/health", "host: a", "host: b"), 200),
    "slashes": (get("//health"), 404),
    "slashes before a model": (post("//v1/models/pump:predict"), 404),
    "slashes within": (post("/v1//models/pump:predict"), 404),
    "an address after slashes": (get("//evil.example/health"), 404),
    "dots": (get("/v2/models/%2e%2e/%2e%2e/etc/passwd"), 404),
    "plain dots": (get("/../../etc/passwd"), 404),
    "dots before a name": (post("/v1/models/%2e%2e:predict"), 404),
    "null in the path of a prediction": (post("/v1/models/pump%00:predict"), 404),
    "null byte in the path": (b"GET /health\0 HTTP/1.1\r\n\r\n", 400),
    "half an escape": (post("/v1/models/pump%2:predict"), 404),
    "escaped twice": (post("/v1/models/p%2575mp:predict"), 404),
    "null in the path": (get("/v2/models/pump%00"), 404),
    "name that climbs": (post("/v1/models/..%2f..%2fpump:predict"), 404),
    "name that is not utf-8": (post("/v1/models/%ff%fe:predict"), 404),
    "name with a newline": (post("/v1/models/a%0d%0ax:predict"), 404),
    "absolute target": (get("http://d/health"), (200, 404)),
    "asterisk": (get("*"), (400, 404)),
    "half a request of json": (post(PREDICT, b'{"instances": [['), 400),
    "deep json": (post(PREDICT, b'{"instances": ' + b"[" * 100_000), 400),
    "not utf-8": (post(PREDICT, b'{"instances": [["\xff\xfe"]]}'), 400),
}
"""What is sent, and the code of its answer; the connection is closed after each."""


@pytest.mark.parametrize("case", TABLE)
def test_each_has_its_code(place, case):
    sent, expected = TABLE[case]
    expected = expected if isinstance(expected, tuple) else (expected,)
    answer = talk(place, sent)
    # a reset may overtake the answer to bytes that nobody reads
    assert codes(answer)[-1:] in ([], *([one] for one in expected)), answer[:300]
    assert codes(answer) or len(sent) > 60_000
    assert b"Traceback" not in answer
    assert codes(talk(place, GOOD)) == [200]


# what comes in one packet with an upgrade is the other protocol's to uvicorn
@pytest.mark.parametrize("case", [case for case in TABLE if b"upgrade:" not in TABLE[case][0]])
def test_each_has_its_code_where_more_is_to_come(place, case):
    """On a connection that is kept, where predictions go the short way."""
    sent, expected = TABLE[case]
    expected = expected if isinstance(expected, tuple) else (expected,)
    answer = talk(place, sent.replace(CLOSE, b""), get("/v2/health/live"))
    said = [one for one in codes(answer) if one != 100]
    assert said[0] in expected if said else len(sent) > 60_000, answer[:300]
    assert b"Traceback" not in answer
    assert said[1:] in ([], [200], [400])


@pytest.mark.parametrize("case", ["good", "empty body", "deep json", "dots", "huge length"])
def test_a_unix_socket_answers_the_same(world, load, tmp_path, case):
    world.add("pump", load("v"))
    path = tmp_path / "s"
    world.start(unix_socket=path)
    sent, expected = TABLE[case]
    assert codes(talk(str(path), sent, family=socket.AF_UNIX)) in ([expected], [])


def test_an_answer_cannot_be_split_by_what_was_asked(place):
    answer = talk(place, get("/v2/models/x%0d%0aset-cookie:%20a=b"))
    head = answer.split(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head


def test_a_flood_in_a_pipeline_is_answered_in_order(place):
    flood = post(close=False) * 500 + get("/v2/health/live") * 2
    assert codes(talk(place, flood)) == [200] * 501


def test_what_follows_the_last_request_of_a_connection_is_not_read(place):
    assert codes(talk(place, GOOD + post(close=False) * 50)) == [200]


@pytest.fixture
def busy(world, load, tmp_path):
    """Every listener, and descriptors enough for whoever fills one of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    world.add("pump", load("v"))
    world.socket = tmp_path / "s"
    world.start(unix_socket=world.socket, host="127.0.0.1", ops=OpsConfig(host="127.0.0.1", port=0))
    yield world
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check_others(world, *, tcp=True):
    """Whoever else asks is answered, wherever it asks."""
    assert codes(talk(("127.0.0.1", world.server.ops_port), get("/health"))) == [200]
    assert codes(talk(str(world.socket), GOOD, family=socket.AF_UNIX)) == [200]
    if tcp:
        assert codes(talk(("127.0.0.1", world.server.port), GOOD)) == [200]


def connections(world):
    counts = [len(one.server_state.connections) for one in world.server._servers]
    return sum(counts)


@contextlib.contextmanager
def many(place, number, *first):
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(number):
            connection = stack.enter_context(socket.create_connection(place, SECONDS))
            with contextlib.suppress(ConnectionError):
                for part in first:
                    connection.sendall(part)
            opened.append(connection)
        yield opened


@pytest.mark.parametrize("drip", [b"G", b"POST " + PREDICT.encode(), post(length=99)], ids=str)
def test_five_hundred_that_drip_stop_nobody(busy, drip):
    with many(("127.0.0.1", busy.server.port), 500, drip):
        check_others(busy)


def test_more_than_may_connect_leave_the_others_theirs(busy):
    with many(("127.0.0.1", busy.server.port), 700, b"G"):
        check_others(busy, tcp=False)
    eventually(lambda: connections(busy) == 0, lambda: connections(busy))
    check_others(busy)


def test_those_that_connect_and_go_leave_nothing(busy):
    place = ("127.0.0.1", busy.server.port)
    for _ in range(1000):
        socket.create_connection(place, SECONDS).close()
    check_others(busy)
    eventually(lambda: connections(busy) == 0, lambda: connections(busy))


def test_those_that_hang_up_in_their_body_leave_nothing(busy):
    with many(("127.0.0.1", busy.server.port), 200, post(length=1000)):
        pass
    eventually(lambda: connections(busy) == 0, lambda: connections(busy))
    assert busy.slots["pump"].in_flight == 0
    check_others(busy)


def test_a_drip_is_cut_in_time(busy, monkeypatch):
    monkeypatch.setattr(head_module, "HEAD_SECONDS", 0.2)
    assert talk(("127.0.0.1", busy.server.port), b"GET /") == b""


def test_a_body_that_does_not_come_is_408(busy, monkeypatch):
    for module in (asgi_module, sending_module):
        monkeypatch.setattr(module, "BODY_SECONDS", 0.2, raising=False)
    slow = post("/v2/repository/index", length=99)
    assert codes(talk(("127.0.0.1", busy.server.port), slow)) == [408]


def test_bytes_after_an_answer_do_not_hold_a_connection(busy, monkeypatch):
    """The body of a request that nobody reads: the answer is there, and the rest may never come."""
    monkeypatch.setattr(sending_module, "REST_SECONDS", 0.2)
    request = b"GET /health HTTP/1.1\r\nhost: d\r\ncontent-length: 1000000\r\n\r\n"
    assert codes(talk(("127.0.0.1", busy.server.port), request)) == [200]


def test_a_client_that_does_not_read_is_cut(busy, monkeypatch):
    monkeypatch.setattr(sending_module, "SEND_SECONDS", 0.2)
    large = post(PREDICT, json.dumps({"instances": [ROW] * 60_000}).encode(), close=False)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(SECONDS)
    connection.connect(("127.0.0.1", busy.server.port))
    with connection:
        connection.sendall(large)
        eventually(lambda: busy.slots["pump"].totals.answered, lambda: "an answer")
        eventually(lambda: connections(busy) == 0, lambda: connections(busy))
    check_others(busy)


def test_a_client_that_reads_slowly_gets_all_of_it(busy, monkeypatch):
    monkeypatch.setattr(sending_module, "SEND_SECONDS", 0.5)
    large = post(PREDICT, json.dumps({"instances": [ROW] * 20_000}).encode())
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(SECONDS)
    connection.connect(("127.0.0.1", busy.server.port))
    received = bytearray()
    with connection:
        sender = threading.Thread(target=connection.sendall, args=(large,))
        sender.start()
        while part := connection.recv(2048):
            received += part
        sender.join()
    head, body = bytes(received).split(b"\r\n\r\n", 1)
    assert codes(head) == [200]
    assert len(json.loads(body)["predictions"]) == 20_000


def test_half_open_tls_stops_nobody(world, load, tmp_path):
    files = make_tls(tmp_path / "tls", "localhost")
    world.add("pump", load("v"))
    token = make_token(tmp_path / "token")
    config = ServeConfig(
        tls_certificate=str(files.certificate),
        tls_key=str(files.key),
        token_file=str(tmp_path / "token"),
    )
    world.start(host="127.0.0.1", guard=Guard(config))
    place = ("127.0.0.1", world.server.port)
    with many(place, 200, b"\x16\x03\x01"):
        plain = socket.create_connection(place, SECONDS)
        with files.trusting().wrap_socket(plain, server_hostname="localhost") as connection:
            lines = [f"authorization: Bearer {token}"]
            connection.sendall(post(PREDICT, BODY, *lines))
            assert codes(connection.recv(4096)) == [200]
    assert codes(talk(place, GOOD)) == []
