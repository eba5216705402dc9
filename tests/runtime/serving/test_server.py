from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import stat
import threading

import pytest

from edgepack_contract.errors import ConfigError
from edgepack_contract.limits import LIMITS
from edgepack_runtime.serving import head as head_module
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.server import serve

BODY = json.dumps({"instances": [[0.5, -1.0, 2.0, 0.0]]}).encode()
BIG = json.dumps({"instances": [[0.5, -1.0, 2.0, 0.0]] * 5000}).encode()
DEADLINE = 30.0


def over_unix(path, method="GET", target="/v2/health/live", body=None):
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(str(path))
    connection.request(method, target, body)
    response = connection.getresponse()
    raw = response.read()
    connection.close()
    return response.status, json.loads(raw)


def talk(port, *parts):
    """Send raw bytes and read until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            return b"".join(iter(lambda: connection.recv(4096), b""))
        except (ConnectionResetError, BrokenPipeError):
            return b""


def test_a_unix_socket_is_for_owner_and_group(world, load, tmp_path):
    world.add("pump", load("v"))
    path = tmp_path / "serve.sock"
    running = world.start(unix_socket=path)
    assert running.port is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert over_unix(path) == (200, {"live": True})
    status, answer = over_unix(path, "POST", "/v1/models/pump:predict", BODY)
    assert (status, len(answer["predictions"])) == (200, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["serve.sock"]
    world.wait(running.stop())
    assert not path.exists()


def test_both_at_once_and_a_stale_socket_is_replaced(world, tmp_path):
    path = tmp_path / "serve.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    running = world.start(unix_socket=path, host="127.0.0.1")
    assert running.port > 0
    assert over_unix(path)[0] == 200
    assert world.ask("GET", "/v2/health/live").status == 200


def test_a_socket_that_somebody_took_over_is_left_alone(world, tmp_path):
    path = tmp_path / "serve.sock"
    running = world.start(unix_socket=path)
    path.unlink()
    path.write_bytes(b"of another")
    world.wait(running.stop())
    assert path.read_bytes() == b"of another"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_off_loopback_is_refused(host):
    with pytest.raises(ConfigError) as caught:
        asyncio.run(serve(App({}), host=host))
    assert caught.value.code == "insecure-listener"
    assert "TLS" in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_fine(world, host):
    assert world.start(host=host).port > 0
    assert world.ask("GET", "/v2/health/live").status == 200


def test_places_that_cannot_be_listened_at(tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    file = tmp_path / "file"
    file.write_bytes(b"")
    for where in (
        {"host": "127.0.0.1", "port": taken.getsockname()[1]},
        {"unix_socket": tmp_path / "no" / "such" / "folder.sock"},
        {"unix_socket": file},
        {},
    ):
        with pytest.raises(ConfigError) as caught:
            asyncio.run(serve(App({}), **where))
        assert caught.value.code == "cannot-listen"
    taken.close()
    assert file.read_bytes() == b""


def test_stopping_finishes_what_is_in_flight(world, load, monkeypatch):
    model = load("v")
    world.add("pump", model)
    running = world.start()
    entered, go_on, whole = threading.Event(), threading.Event(), model.run

    def slow(feeds):
        entered.set()
        assert go_on.wait(DEADLINE)
        return whole(feeds)

    monkeypatch.setattr(model, "run", slow)
    answers = []
    client = threading.Thread(
        target=lambda: answers.append(world.ask("POST", "/v1/models/pump:predict", BIG))
    )
    client.start()
    assert entered.wait(DEADLINE)
    stopping = asyncio.run_coroutine_threadsafe(running.stop(), world.loop)
    assert not stopping.done()
    go_on.set()
    stopping.result(DEADLINE)
    client.join(DEADLINE)
    assert answers[0].status == 200
    assert len(answers[0].json["predictions"]) == 5000
    with pytest.raises(ConnectionRefusedError):
        world.ask("GET", "/v2/health/live")
    world.wait(running.stop())


def test_signals_are_left_to_the_daemon():
    before = signal.getsignal(signal.SIGTERM)

    async def work():
        running = await serve(App({}), host="127.0.0.1")
        assert signal.getsignal(signal.SIGTERM) is before
        await running.stop()
        await running.wait()

    asyncio.run(work())


HEAD = b"GET /v2/health/live HTTP/1.1\r\nhost: d\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [HEAD + b"x: " + b"a" * LIMITS.request_header_bytes + b"\r\n\r\n"],
        [HEAD + b"x: ", *[b"a" * 1024] * 20000],
        [b"GET /" + b"a" * LIMITS.request_header_bytes + b" HTTP/1.1\r\n\r\n"],
        [HEAD, *[f"x-{number}: {number}\r\n".encode() for number in range(20000)]],
    ],
    ids=["one header", "endless header", "long target", "endless headers"],
)
def test_a_head_that_is_too_large_is_hung_up_on(world, parts):
    world.start()
    answer = talk(world.server.port, *parts)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert world.ask("GET", "/v2/health/live").status == 200


def test_a_head_that_does_not_end_is_hung_up_on(world, monkeypatch):
    monkeypatch.setattr(head_module, "HEAD_SECONDS", 0.05)
    world.start()
    assert talk(world.server.port, HEAD) == b""
    assert talk(world.server.port) == b""
    # also on a connection that was used before
    good = HEAD + b"\r\n"
    answer = talk(world.server.port, good + HEAD)
    assert answer.count(b"HTTP/1.1 200") == 1


def test_a_head_in_pieces_is_fine(world):
    world.start()
    parts = [bytes([byte]) for byte in HEAD + b"connection: close\r\n\r\n"]
    assert talk(world.server.port, *parts).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/models/pump:predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_400(world, raw):
    world.start()
    answer = talk(world.server.port, raw)
    assert answer.startswith(b"HTTP/1.1 400")
    assert world.ask("GET", "/v2/health/live").status == 200


def test_a_client_that_hangs_up_half_way_harms_nobody(world, load):
    world.add("pump", load("v"))
    world.start()
    with socket.create_connection(("127.0.0.1", world.server.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/models/pump:predict HTTP/1.1\r\nhost: d\r\ncontent-length: 100\r\n\r\n{"
        )
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    assert world.ask("POST", "/v1/models/pump:predict", BODY).status == 200
    assert world.slots["pump"].in_flight == 0
