"""Listeners behind TLS and a token, and the operations listener beside them."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl

import pytest
from certificate_files import make_tls, make_token
from world_waiting import eventually

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import Violation, Waiver
from edgepack_runtime.config import OpsConfig, ServeConfig
from edgepack_runtime.serving import server as server_module
from edgepack_runtime.serving.access import Guard, TokenRequired
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.ops import PATHS

BODY = json.dumps({"instances": [[0.5, -1.0, 2.0, 0.0]]}).encode()
PREDICT = "/v1/models/pump:predict"
OPS = OpsConfig(host="127.0.0.1", port=0)
WAIVER = Waiver("lab <b>", (Violation("serve.host", "/secret/path", "fix", waivable=True),))


@pytest.fixture
def files(tmp_path):
    return make_tls(tmp_path / "tls")


@pytest.fixture
def token(tmp_path):
    return make_token(tmp_path / "token")


@pytest.fixture
def guard(files, token, tmp_path):
    return Guard(
        ServeConfig(
            tls_certificate=str(files.certificate),
            tls_key=str(files.key),
            token_file=str(tmp_path / "token"),
        )
    )


@pytest.fixture
def token_guard(token, tmp_path):
    return Guard(ServeConfig(token_file=str(tmp_path / "token")))


class Caller:
    """A client that keeps its connection."""

    def __init__(self, port, context=None):
        self.connection = (
            http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            if context is None
            else http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        )

    def ask(self, path, method="GET", body=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        return response, response.read()

    def serial(self):
        return self.connection.sock.getpeercert()["serialNumber"]


@contextlib.contextmanager
def calling(port, context=None):
    caller = Caller(port, context)
    try:
        yield caller
    finally:
        caller.connection.close()


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_predictions_by_tls_with_the_token(world, load, guard, files, token, host):
    world.add("pump", load("v"))
    port = world.start(host=host, guard=guard).port
    with calling(port, files.trusting()) as caller:
        response, raw = caller.ask(PREDICT, "POST", BODY, **bearer(token))
        assert response.status == 200
        assert len(json.loads(raw)["predictions"]) == 1
        assert caller.connection.sock.version() in ("TLSv1.2", "TLSv1.3")
        # the connection stays for the next request
        assert caller.ask("/v2", **bearer(token))[0].status == 200
        response, raw = caller.ask(PREDICT, "POST", BODY)
        assert response.status == 401


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/metrics", "/v2", "/v2/models/pump", "/nothing", "/v2/"]
)
def test_everything_but_life_and_readiness_needs_the_token(world, load, token_guard, token, path):
    world.add("pump", load("v"))
    port = world.start(host="127.0.0.1", guard=token_guard).port
    with calling(port) as caller:
        response, raw = caller.ask(path)
        assert response.status == 401
        assert response.getheader("www-authenticate") == 'Bearer realm="edgepack"'
        assert response.getheader("connection") == "close"
        assert json.loads(raw) == {
            "error": "send the token of this device: Authorization: Bearer TOKEN"
        }
        assert caller.ask(path, **bearer(token))[0].status in (200, 404)
        for open_path in ("/v2/health/live", "/v2/health/ready"):
            assert caller.ask(open_path)[0].status == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer {}", 200), ("bearer {}", 200), ("Bearer  {} ", 200), ("BEARER {}", 200),
        ("Basic {}", 401), ("{}", 401), ("Bearer", 401), ("Bearer ", 401), ("", 401),
        ("Bearer {}x", 401), ("Bearer x{}", 401), ("Bearer {} {}", 401), ("Bearer,{}", 401),
    ],
)  # fmt: skip
def test_how_a_token_is_given(world, token_guard, token, header, status):
    port = world.start(host="127.0.0.1", guard=token_guard).port
    with calling(port) as caller:
        given = header.replace("{}", token)
        assert caller.ask("/v2", authorization=given)[0].status == status


def test_two_tokens_are_none(token_guard, token):
    right = (b"authorization", f"Bearer {token}".encode())
    assert token_guard.admits([(b"host", b"d"), right])
    assert not token_guard.admits([right, right])
    assert not token_guard.admits([])


def test_a_token_shorter_by_one_and_bytes_that_are_no_text(token_guard, token):
    for given in (token[:-1].encode(), token.encode() + b"\xff", b"\xff" * 64, b""):
        assert not token_guard.admits([(b"authorization", b"Bearer " + given)])


def test_the_unix_socket_needs_no_token(world, load, guard, tmp_path):
    world.add("pump", load("v"))
    path = tmp_path / "serve.sock"
    world.start(unix_socket=path, host="0.0.0.0", guard=guard)
    with calling(0) as caller:
        caller.connection.sock = socket.socket(socket.AF_UNIX)
        caller.connection.sock.connect(str(path))
        assert caller.ask(PREDICT, "POST", BODY)[0].status == 200


def test_the_body_of_a_stranger_is_not_read(world, load, token_guard):
    world.add("pump", load("v"))
    port = world.start(host="127.0.0.1", guard=token_guard).port
    head = f"POST {PREDICT} HTTP/1.1\r\nhost: d\r\ncontent-length: 60000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("missing", ["tls", "token"])
def test_half_a_guard_is_none_off_loopback(world, files, token_guard, missing):
    tls = Guard(ServeConfig(tls_certificate=str(files.certificate), tls_key=str(files.key)))
    half = token_guard if missing == "tls" else tls
    with pytest.raises(ConfigError) as raised:
        world.start(host="0.0.0.0", guard=half)
    assert raised.value.code == "insecure-listener"
    assert world.start(host="0.0.0.0", guard=half, insecure=True).port


def test_plain_http_on_a_tls_port_harms_nobody(world, guard, files):
    port = world.start(host="127.0.0.1", guard=guard).port
    with calling(port) as plain, pytest.raises((http.client.HTTPException, OSError)):
        plain.ask("/v2/health/live")
    with calling(port, files.trusting()) as caller:
        assert caller.ask("/v2/health/live")[0].status == 200


def test_a_caller_that_does_not_finish_its_handshake_is_hung_up_on(
    world, guard, files, monkeypatch
):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)
    port = world.start(host="127.0.0.1", guard=guard).port
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        assert connection.recv(1) == b""


def test_old_tls_is_refused(world, guard, files):
    port = world.start(host="127.0.0.1", guard=guard).port
    context = files.trusting()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with calling(port, context) as caller:
        assert caller.ask("/v2/health/live")[0].status == 200
    assert guard.tls.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_new_certificate_and_token_without_dropping_connections(
    world, guard, files, token, tmp_path
):
    running = world.start(host="127.0.0.1", guard=guard)
    with calling(running.port, files.trusting()) as old:
        assert old.ask("/v2", **bearer(token))[0].status == 200
        serial = old.serial()
        renewed = make_tls(tmp_path / "tls")
        fresh = make_token(tmp_path / "token", "f" * 40)
        world.call(running.reload)
        with calling(running.port, renewed.trusting()) as new:
            assert new.ask("/v2", **bearer(fresh))[0].status == 200
            assert new.serial() != serial
        assert old.ask("/v2", **bearer(fresh))[0].status == 200
        assert old.serial() == serial
        assert old.ask("/v2", **bearer(token))[0].status == 401


def test_callers_that_name_no_server_get_the_newest_certificate_too(world, guard, tmp_path):
    running = world.start(host="127.0.0.1", guard=guard)
    renewed = make_tls(tmp_path / "tls")
    world.call(running.reload)
    context = renewed.trusting()
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=30) as raw,
        context.wrap_socket(raw) as connection,
    ):
        assert connection.getpeercert()


@pytest.mark.parametrize("harm", ["certificate", "key", "token"])
def test_what_cannot_be_read_again_changes_nothing(world, guard, files, token, tmp_path, harm):
    running = world.start(host="127.0.0.1", guard=guard)
    make_token(tmp_path / "token", "f" * 40)
    {"certificate": files.certificate, "key": files.key, "token": tmp_path / "token"}[
        harm
    ].write_text("")
    with pytest.raises(ConfigError):
        world.call(running.reload)
    with calling(running.port, files.trusting()) as caller:
        assert caller.ask("/v2", **bearer(token))[0].status == 200


def test_operations_are_plain_and_read_only(world, load, guard):
    world.add("pump", load("v"))
    running = world.start(host="127.0.0.1", guard=guard, ops=OPS)
    assert running.ops_port not in (None, running.port)
    with calling(running.ops_port) as caller:
        for path in PATHS:
            response, raw = caller.ask(path)
            assert (response.status, response.getheader("connection")) == (200, "close")
            assert raw
            response, raw = caller.ask(path, "HEAD")
            assert (response.status, raw) == (200, b"")
            assert caller.ask(path, "OPTIONS")[0].getheader("allow") == "GET, HEAD, OPTIONS"
            for method in ("POST", "PUT", "DELETE"):
                assert caller.ask(path, method, b"{}")[0].status == 405
        for path in ("/", "/v2", "/v2/models/pump", "/v2/models/stats", "/v2/health", "/health/"):
            assert caller.ask(path)[0].status == 404
        for path in (PREDICT, "/v2/models/pump/infer", "/v2/repository/index"):
            assert caller.ask(path, "POST", BODY)[0].status == 404
    assert world.slots["pump"].totals.answered == 0


def test_operations_tell_when_nothing_is_ready(world):
    running = world.start(host="127.0.0.1", ops=OPS)
    with calling(running.ops_port) as caller:
        assert caller.ask("/v2/health/live")[0].status == 200
        assert caller.ask("/v2/health/ready")[0].status == 503
        assert caller.ask("/ready")[0].status == 503


def test_who_fills_the_operations_listener_does_not_fill_the_other(world, monkeypatch):
    monkeypatch.setattr(server_module, "OPS_CONNECTIONS", 3)
    running = world.start(host="127.0.0.1", ops=OPS)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = socket.create_connection(("127.0.0.1", running.ops_port), timeout=30)
            stack.enter_context(connection).sendall(b"GET /health HTTP/1.1\r\n")
        with calling(running.ops_port) as caller:
            assert caller.ask("/v2/health/live")[0].status == 503
        with calling(running.port) as caller:
            assert caller.ask("/v2/health/live")[0].status == 200


def test_handshakes_that_never_end_do_not_take_every_descriptor(world, guard, files, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(server_module, "REFUSED_WITH_WORDS", 3)
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 600.0)
    port = world.start(host="127.0.0.1", guard=guard).port
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(5)
        ]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as one_more:
            assert one_more.recv(1) == b""
        silent[0].shutdown(socket.SHUT_RDWR)
        assert silent[0].recv(1) == b""

        def served():
            with calling(port, files.trusting()) as caller, contextlib.suppress(OSError):
                return caller.ask("/v2/health/live")[0].status
            return None

        eventually(lambda: served() == 200, "a place became free")


def test_a_place_that_is_taken_frees_the_others(world, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{port}"):
            world.start(host="127.0.0.1", ops=OpsConfig(host="127.0.0.1", port=port))


def test_what_was_waived_is_told_everywhere_but_no_paths(world, load):
    world.add("pump", load("v"))
    running = world.start(App(world.slots, waiver=WAIVER), host="127.0.0.1", ops=OPS)
    told = {"reason": "lab <b>", "settings": ["serve.host"]}
    with calling(running.port) as caller:
        assert json.loads(caller.ask("/v2")[1])["insecure"] == told
        assert json.loads(caller.ask("/health")[1])["insecure"] == told
        page = caller.ask("/")[1].decode()
        assert "Insecure: serve.host." in page
        assert "lab &lt;b&gt;" in page
    with calling(running.ops_port) as caller:
        assert b"\nedgepack_insecure 1\n" in caller.ask("/metrics")[1]
        assert b"/secret/path" not in caller.ask("/health")[1]


def test_who_is_secure_says_so(world):
    with calling(world.start(host="127.0.0.1").port) as caller:
        assert "insecure" not in json.loads(caller.ask("/v2")[1])
        assert json.loads(caller.ask("/health")[1])["insecure"] is None
        assert b"\nedgepack_insecure 0\n" in caller.ask("/metrics")[1]
        assert b"Insecure" not in caller.ask("/")[1]


def test_the_page_shows_numbers_as_numbers(world, load):
    world.add("pump", load("v"))
    with calling(world.start(host="127.0.0.1").port) as caller:
        assert b"<td>0</td></tr>" in caller.ask("/")[1]
        caller.ask(PREDICT, "POST", BODY)
        assert b"<td>1</td></tr>" in caller.ask("/")[1]


def test_an_application_without_a_token_stands_alone(guard):
    app = App({})
    assert Guard(ServeConfig()).before(app) is app
    assert isinstance(guard.before(app), TokenRequired)
