"""A request that offers HTTP/2 or a web socket is answered as one that does not."""

from __future__ import annotations

import json

import pytest

BODY = json.dumps({"instances": [[0.5, -1.0, 2.0, 0.0]]}).encode()
PATH = b"/v1/models/pump:predict"
OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
}


def post(offer=b"", body=BODY, *, chunked=False):
    length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    return b"POST %b HTTP/1.1\r\nhost: d\r\n%b%b\r\n\r\n%b" % (PATH, offer, length, sent)


def asked(line, raw, *, pieces=1):
    one, size = line(), -(-len(raw) // pieces)
    for start in range(0, len(raw), size):
        one.send(raw[start : start + size])
    status, headers, body = one.answer()
    return status, headers, body, one


@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("offer", OFFERS)
def test_the_body_is_read_and_the_answer_is_plain(world, pump, line, offer, chunked, pieces):
    plain = asked(line, post())[2]
    status, headers, body, one = asked(line, post(OFFERS[offer], chunked=chunked), pieces=pieces)
    assert (status, body) == (b"HTTP/1.1 200 OK\r\n", plain)
    assert headers[b"connection"] == b"close"
    assert one.rest() == b""


def test_a_large_body_comes_whole(world, pump, line):
    rows = json.dumps({"instances": [[0.5, -1.0, 2.0, 0.0]] * 20_000}).encode()
    status, _, body, _ = asked(line, post(OFFERS["h2c"], rows))
    assert (status, len(json.loads(body)["predictions"])) == (b"HTTP/1.1 200 OK\r\n", 20_000)


def test_health_is_told_to_who_offers_http_2(world, pump, line):
    raw = b"GET /health HTTP/1.1\r\nhost: d\r\n%b\r\n" % OFFERS["h2c"]
    status, _, body, one = asked(line, raw)
    assert (status, json.loads(body)["status"]) == (b"HTTP/1.1 200 OK\r\n", "ok")
    assert one.rest() == b""


def test_what_follows_is_not_answered_and_nests_nothing(world, pump, line):
    _, _, _, one = asked(line, post(OFFERS["h2c"]) * 500)
    assert b"HTTP/1.1 200" not in one.rest()
    assert asked(line, post())[0] == b"HTTP/1.1 200 OK\r\n"


def test_the_bounds_hold(world, pump, line):
    head = post(OFFERS["h2c"] + b"x: %b\r\n" % (b"a" * 60_000))
    assert asked(line, head)[0].startswith(b"HTTP/1.1 400")
    huge = post(OFFERS["h2c"]).replace(b"length: %d" % len(BODY), b"length: 99999999999")
    assert asked(line, huge)[0].startswith(b"HTTP/1.1 413")
    tunnel = b"CONNECT d:80 HTTP/1.1\r\nhost: d\r\n\r\n"
    assert asked(line, tunnel)[0][9:12] in (b"400", b"404", b"405")
