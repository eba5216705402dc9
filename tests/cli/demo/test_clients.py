"""The demo's clients: every row once before any row twice, and a record of every request."""

from __future__ import annotations

import itertools
import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from edgepack_cli.demo.clients import Outcome

SECONDS = 30.0


class Device(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Says that every row is the number it begins with, halved; ``status`` can be changed."""

    daemon_threads = True

    def __init__(self, path):
        self.asked, self.status, self.wrong = [], 200, False
        super().__init__(str(path), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append((self.path, body))
        label = int(body["instances"][0][0] // 2) + server.wrong
        answer = {"predictions": [{"label": label}], "model_version": "1.0.0"}
        raw = json.dumps(answer).encode() if server.status == 200 else b"no memory left"
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "s"
    server = Device(path)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run_until(client, answers):
    client.start()
    deadline = time.monotonic() + SECONDS
    while len(client.answers) < answers:
        assert time.monotonic() < deadline, "the client does not ask"
        time.sleep(0.01)
    client.stop()
    return client.answers


def test_rows_come_without_replacement_in_an_order_of_ones_own(make_client):
    walk = list(itertools.islice(make_client("a", rows=50)._rows(), 150))
    rounds = [walk[start : start + 50] for start in (0, 50, 100)]
    assert [sorted(one) for one in rounds] == [list(range(50))] * 3
    assert rounds[0] != rounds[1]
    assert walk == list(itertools.islice(make_client("b", rows=50)._rows(), 150))
    other = make_client("a", rows=50, seed=2)._rows()
    assert walk != list(itertools.islice(other, 150))


def test_every_request_is_recorded_and_labels_stay_here(make_client, device, tmp_path):
    answers = run_until(make_client("a", tmp_path / "s", rows=4), 12)
    assert {one.outcome for one in answers} == {Outcome.SERVED}
    assert all(one.correct and one.version == "1.0.0" for one in answers)
    assert [one.at for one in answers] == sorted(one.at for one in answers)
    assert len(device.asked) == len(answers)
    path, body = device.asked[0]
    assert path == "/v1/models/digits:predict"
    assert list(body) == ["instances"]
    seen = [asked["instances"][0][0] for _, asked in device.asked[:4]]
    assert sorted(seen) == [0.0, 2.0, 4.0, 6.0]


def test_a_wrong_answer_is_served_but_not_right(make_client, device, tmp_path):
    device.wrong = True
    answers = run_until(make_client("a", tmp_path / "s"), 3)
    assert {(one.outcome, one.correct) for one in answers} == {(Outcome.SERVED, False)}


@pytest.mark.parametrize(("status", "outcome"), [(503, Outcome.DOWN), (500, Outcome.FAILED),
                                                 (400, Outcome.FAILED)])  # fmt: skip
def test_other_statuses(make_client, device, tmp_path, status, outcome):
    device.status = status
    answers = run_until(make_client("a", tmp_path / "s"), 2)
    assert {one.outcome for one in answers} == {outcome}
    assert answers[0].words == f"{status}: no memory left"


def test_a_device_that_is_not_there_is_down(make_client, tmp_path):
    answers = run_until(make_client("a", tmp_path / "nobody"), 3)
    assert {one.outcome for one in answers} == {Outcome.DOWN}
    assert "FileNotFoundError" in answers[0].words


def test_a_client_goes_on_when_its_device_is_back(make_client, tmp_path):
    client = make_client("a", tmp_path / "s")
    client.start()
    deadline = time.monotonic() + SECONDS
    while not client.answers:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server = Device(tmp_path / "s")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        while client.answers[-1].outcome != Outcome.SERVED:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        client.stop()
        server.shutdown()
        thread.join()
        server.server_close()
    assert client.answers[0].outcome == Outcome.DOWN
