"""The client of the fleet's API: what it sends, and its words when that fails."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edgepack_cli.client import FleetClient, from_environment
from edgepack_cli.errors import CommandError, FleetRefusedError, FleetUnreachableError


@contextmanager
def answering(status=200, body=b"{}", **headers):
    """A server that gives one answer to everything and keeps what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            size = int(self.headers.get("Content-Length") or 0)
            asked.append((self.command, self.path, dict(self.headers), self.rfile.read(size)))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - names of the standard library

        def log_message(self, *_):
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield FleetClient(f"http://127.0.0.1:{server.server_port}", "secret"), asked
        finally:
            server.shutdown()
            thread.join()


def test_a_request_carries_the_token_and_what_was_asked():
    with answering(body=b'{"items": []}') as (client, asked):
        assert client.get("/devices", after="a b", limit=None) == {"items": []}
        client.post("/rollouts", {"bundle": "x"}, headers={"Idempotency-Key": "k"})
    (got, posted) = asked
    assert got[:2] == ("GET", "/api/v1/devices?after=a+b")
    assert got[2]["Authorization"] == "Bearer secret"
    assert posted[:2] == ("POST", "/api/v1/rollouts")
    assert json.loads(posted[3]) == {"bundle": "x"}
    assert posted[2]["Content-Type"] == "application/json"
    assert {name.lower(): value for name, value in posted[2].items()}["idempotency-key"] == "k"


def test_a_file_is_sent_as_it_is(tmp_path):
    path = tmp_path / "x.edgepack"
    path.write_bytes(bytes(range(256)) * 5000)
    with answering() as (client, asked):
        client.put_file("/bundles", path)
    ((method, where, headers, body),) = asked
    assert (method, where) == ("PUT", "/api/v1/bundles")
    assert headers["Content-Length"] == str(len(body))
    assert body == path.read_bytes()


def test_a_list_is_all_of_its_pages(monkeypatch):
    pages = {None: {"items": [1, 2], "next": "b"}, "b": {"items": [3], "next": None}}
    monkeypatch.setattr(FleetClient, "get", lambda _self, _path, after: pages[after])
    assert FleetClient("http://x", "t").items("/devices") == [1, 2, 3]


def test_no_content_is_none():
    with answering(status=204, body=b"") as (client, _):
        assert client.post("/x", {}) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"title": "Conflict", "detail": "pi-1 has other keys"}', "pi-1 has other keys"),
        (b'{"title": "Conflict"}', "Conflict"),
        (b"<html>no</html>", "Conflict"),
        (b"[1]", "Conflict"),
        (b"", "Conflict"),
    ],
)
def test_a_refusal_has_the_words_of_the_problem(body, words):
    with answering(status=409, body=body) as (client, _), pytest.raises(FleetRefusedError) as got:
        client.get("/devices")
    assert str(got.value) == f"the fleet refused: {words}"
    assert got.value.status == 409


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"\xff"])
def test_an_answer_that_is_not_json_is_not_a_fleet(body):
    with answering(body=body) as (client, _), pytest.raises(FleetUnreachableError) as got:
        client.get("/devices")
    assert client.url in str(got.value)
    assert "JSON" in str(got.value)


def test_a_redirect_does_not_take_the_token_elsewhere():
    with (
        answering() as (elsewhere, asked),
        answering(status=307, body=b"", Location=elsewhere.url) as (client, _),
        pytest.raises(FleetRefusedError) as got,
    ):
        client.get("/devices")
    assert got.value.status == 307
    assert asked == []


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch):
    with answering() as (proxy, asked), answering(body=b'{"here": 1}') as (client, _):
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert client.get("/devices") == {"here": 1}
    assert asked == []


def test_nobody_there(cli, nowhere):
    for words in (["device", "list"], ["rollout", "watch", "x"], ["group", "create", "g", "pi-1"]):
        ended = cli(*words)
        assert (ended.code, ended.out) == (3, "")
        assert ended.err.startswith(f"error: the fleet service at {nowhere} does not answer")
        assert ended.err.count("\n") == 1


def test_the_environment_says_where_and_who(tmp_path):
    path = tmp_path / "token"
    path.write_text("from-file\n")
    urls = {"EDGEPACK_FLEET": "https://fleet.example/"}
    assert from_environment(urls | {"EDGEPACK_TOKEN": "t"}) == FleetClient(
        "https://fleet.example", "t"
    )
    assert from_environment({"EDGEPACK_TOKEN_FILE": str(path)}) == FleetClient(
        "http://127.0.0.1:8080", "from-file"
    )


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "edgepack login URL"),
        ({"EDGEPACK_TOKEN": "t", "EDGEPACK_FLEET": "http://fleet.example"}, "plain http"),
        ({"EDGEPACK_TOKEN": "t", "EDGEPACK_FLEET": "https://f.example/x"}, "expected http://HOST"),
        ({"EDGEPACK_TOKEN": ""}, "EDGEPACK_TOKEN_FILE"),
        ({"EDGEPACK_TOKEN_FILE": "/does/not/exist"}, "/does/not/exist: No such file"),
        ({"EDGEPACK_TOKEN": "t", "EDGEPACK_FLEET": "fleet:8080"}, "expected http://HOST:PORT"),
        ({"EDGEPACK_TOKEN": "t", "EDGEPACK_FLEET": "file:///etc"}, "expected http://HOST:PORT"),
    ],
)
def test_an_environment_that_does_not_say_it_is_usage(environ, words):
    with pytest.raises(CommandError, match="EDGEPACK") as got:
        from_environment(environ)
    assert words in str(got.value)
    assert got.value.exit_code == 2
