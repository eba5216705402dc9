"""Replacing a model is invisible to those who ask it."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time

import pytest

CLIENTS = 4
SWAPS = 20
DEADLINE = 60.0
SMALL = json.dumps({"instances": [[0.5, -1.0, 2.0, 0.0]]})
LARGE = json.dumps({"instances": [[0.5, -1.0, 2.0, 0.0]] * 4000})


class Client(threading.Thread):
    """Asks again as soon as it has an answer, and keeps when it asked and who answered."""

    def __init__(self, port: int, body: str) -> None:
        super().__init__()
        self.seen: list[tuple[float, float, int, str]] = []
        self._body = body
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._stop_asking = threading.Event()

    def run(self) -> None:
        while not self._stop_asking.is_set():
            asked = time.monotonic()
            self._connection.request("POST", "/v1/models/pump:predict", self._body)
            response = self._connection.getresponse()
            answer = json.loads(response.read())
            version = answer.get("model_version", "")
            self.seen.append((asked, time.monotonic(), response.status, version))
        self._connection.close()

    def finish(self) -> None:
        self._stop_asking.set()
        self.join(30)


@pytest.mark.parametrize("keep_previous", [False, True])
def test_no_request_fails_and_each_answer_is_of_a_model_that_was_live(world, load, keep_previous):
    slot = world.add("pump", load("v0", version="0.0.0", seed=0))
    world.start()
    clients = [Client(world.server.port, body) for body in (SMALL, SMALL, SMALL, LARGE)]
    assert len(clients) == CLIENTS
    live = [(0.0, time.monotonic(), "0.0.0")]
    for client in clients:
        client.start()
    for number in range(1, SWAPS + 1):
        model = load(f"v{number}", version=f"{number}.0.0", seed=number)
        counts = [len(client.seen) for client in clients]
        before = time.monotonic()
        world.call(lambda model=model: slot.swap(model, keep_previous=keep_previous))
        live.append((before, time.monotonic(), model.version))
        ends = time.monotonic() + DEADLINE
        while any(len(c.seen) < before + 2 for c, before in zip(clients, counts, strict=True)):
            assert time.monotonic() < ends, "the clients stopped getting answers"
            assert all(client.is_alive() for client in clients)
            time.sleep(0)
    for client in clients:
        client.finish()
    seen = sorted(itertools.chain.from_iterable(client.seen for client in clients))
    assert {status for _, _, status, _ in seen} == {200}
    assert {version for *_, version in seen} == {version for *_, version in live}
    for asked, answered, _, version in seen:
        assert version in _live_between(live, asked, answered)
    assert world.call(lambda: slot.in_flight) == 0
    bodies = world.call(slot.roll)
    assert sum(body.n for body in bodies) == slot.totals.answered == len(seen)
    assert sum(body.errors for body in bodies) == 0


def _live_between(live: list[tuple[float, float, str]], asked: float, answered: float) -> set[str]:
    """Versions that may have been active at some time between a question and its answer."""
    ends = [after for _, after, _ in live[1:]] + [float("inf")]
    return {
        version
        for (began, _, version), ended in zip(live, ends, strict=True)
        if began <= answered and asked <= ended
    }
