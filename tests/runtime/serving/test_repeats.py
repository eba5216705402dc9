"""A head that was seen before is answered as one that is parsed."""

from __future__ import annotations

import asyncio
import json

import pytest
from raw_line import DEADLINE, Line
from tests.runtime.serving.test_fast import GOOD, HUGE, REQUESTS, V1, V2, infer, post
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgepack_runtime.config import ServeConfig
from edgepack_runtime.serving import predict, repeats
from edgepack_runtime.serving.access import Guard


@pytest.fixture
def parsed(monkeypatch):
    """The targets of the requests that were parsed."""
    seen: list[bytes] = []
    whole = HttpToolsProtocol.on_url

    def noted(self, url):
        seen.append(url)
        whole(self, url)

    monkeypatch.setattr(HttpToolsProtocol, "on_url", noted)
    return seen


def ask(line: Line, raw: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    line.send(raw)
    status, headers, body = line.answer()
    headers.pop(b"date")
    return status, headers, body


def known(line: Line, raw: bytes) -> None:
    """Ask until the head is known: the first request of a connection is parsed in any case."""
    for _ in range(2):
        ask(line, raw)


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_asked_again_is_answered_again(shared, name):
    one = Line(shared.server.port)
    ask(one, post(V1))
    first = ask(one, REQUESTS[name])
    if first[1].get(b"connection") != b"close" and b"/1.0" not in REQUESTS[name][:40]:
        for _ in range(3):
            assert ask(one, REQUESTS[name]) == first
    one.close()


def test_no_head_is_parsed_twice(world, pump, line, parsed):
    one, two = line(), line()
    known(one, post(V1))
    known(two, post(V2, infer()))
    parsed.clear()
    for _ in range(3):
        assert ask(one, post(V1))[0].startswith(b"HTTP/1.1 200")
        assert ask(two, post(V1))[0].startswith(b"HTTP/1.1 200")
        assert ask(two, post(V2, infer()))[0].startswith(b"HTTP/1.1 200")
    assert parsed == []
    other = json.dumps({"instances": [[9.0, -1.0, 2.0, 0.0]]}).encode()
    assert len(other) == len(GOOD)
    assert ask(one, post(V1, other))[2] != ask(one, post(V1))[2]
    assert parsed == []
    assert world.call(lambda: (pump.in_flight, pump.totals.answered)) == (0, 15)


def test_pieces_and_pipelines_are_parsed(world, pump, line, parsed):
    one = line()
    known(one, post(V1))
    parsed.clear()
    for part in (post(V1)[:-3], post(V1)[-3:] + post(V1) + post(V1)[:9], post(V1)[9:] + post(V1)):
        one.send(part)
    assert {one.answer()[0] for _ in range(4)} == {b"HTTP/1.1 200 OK\r\n"}
    assert parsed
    parsed.clear()
    ask(one, post(V1))
    assert parsed == []


def test_what_is_not_quick_goes_on_elsewhere_and_keeps_its_place(world, pump, line, monkeypatch):
    one = line()
    known(one, post(V1))
    first = ask(one, post(V1))
    with monkeypatch.context() as patch:
        patch.setattr(predict, "INLINE_SECONDS", 0.0)
        one.send(post(V1))
        one.send(post(V1, HUGE))
        one.send(post(V1))
        assert one.answer()[2] == first[2]
        assert len(one.answer()[2]) > len(HUGE)
        assert one.answer()[2] == first[2]
    assert ask(one, post(V1)) == first
    assert world.call(lambda: pump.in_flight) == 0


def test_another_model_answers_a_head_that_is_known(world, load, pump, line):
    one = line()
    known(one, post(V1))
    world.call(lambda: pump.swap(load("v2", version="2.0.0", bias=-1.0), keep_previous=False))
    _, headers, body = ask(one, post(V1))
    assert headers[b"x-edgepack-version"] == b"2.0.0"
    assert json.loads(body)["model_version"] == "2.0.0"
    pump.unloaded = True
    assert ask(one, post(V1))[0].startswith(b"HTTP/1.1 503")


def test_a_token_that_was_taken_back_admits_nobody(world, load, line, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    guard = Guard(ServeConfig(token_file=str(token)))
    world.add("pump", load("v1"))
    world.start(host="127.0.0.1", guard=guard)
    one, raw = line(), post(V1, GOOD, b"authorization: Bearer secret")
    known(one, raw)
    assert ask(one, raw)[0].startswith(b"HTTP/1.1 200")
    token.write_text("another")
    world.call(guard.reload)
    assert ask(one, raw)[0].startswith(b"HTTP/1.1 401")


def test_a_server_that_ends_says_so_to_whom_it_knows(world, pump, line):
    one = line()
    known(one, post(V1))
    one.socket.settimeout(DEADLINE)
    stopping = asyncio.run_coroutine_threadsafe(world.server.stop(), world.loop)
    while not any((b"connection", b"close") in one.server_state.default_headers
                  for one in world.server._servers):  # fmt: skip
        pass
    status, headers, _ = ask(one, post(V1))
    assert status.startswith(b"HTTP/1.1 200")
    assert headers[b"connection"] == b"close"
    assert one.rest() == b""
    stopping.result(DEADLINE)


def test_heads_that_are_known_are_few_and_small(world, pump, line, monkeypatch, parsed):
    monkeypatch.setattr(repeats, "MOST_HEADS", 4)
    monkeypatch.setattr(repeats, "MOST_HEAD_BYTES", 200)
    one = line()
    ask(one, post(V1))
    fronts = {id(each.front): each.front for each in _open(world)}
    (front,) = fronts.values()
    for number in range(9):
        ask(one, post(V1, GOOD, b"x: %d" % number))
        assert 1 <= world.call(lambda: len(front.seen)) <= 4
    before = world.call(lambda: dict(front.seen))
    ask(one, post(V1, GOOD, b"x: " + b"y" * 200))
    assert world.call(lambda: front.seen == before)


def _open(world) -> list:
    return [one for server in world.server._servers for one in server.server_state.connections]
