"""A daemon's HTTP side without the daemon: slots, a server in its own loop, and a client."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from echo_variants import echo_variant
from raw_line import Line

from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.server import RunningServer, serve
from edgepack_runtime.serving.slot import Slot


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.raw = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class World:
    """A loop in a thread with a server in it; tests talk to it from outside, as clients do."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="server-loop")
        self._thread.start()
        self.server: RunningServer | None = None

    def call(self, work: Callable[[], Any]) -> Any:
        """Run a function on the loop's thread."""

        async def run() -> Any:
            return work()

        return self.wait(run())

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def start(self, app: App | None = None, **where: Any) -> RunningServer:
        where = where or {"host": "127.0.0.1"}
        self.server = self.wait(serve(app or App(self.slots), **where))
        return self.server

    def add(self, name: str, model: ServingModel | None = None, **options: Any) -> Slot:
        slot = self.call(lambda: Slot(name, **options))
        self.slots[name] = slot
        if model is not None:
            self.call(lambda: slot.swap(model, keep_previous=False))
        return slot

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        assert self.server is not None
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            answer = Answer(connection.getresponse())
        # a prediction is counted when it has been sent; after this turn of the loop it is
        self.call(lambda: None)
        return answer

    def close(self) -> None:
        if self.server is not None:
            self.wait(self.server.stop())
        for slot in self.slots.values():
            self.wait(slot.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()


@pytest.fixture
def world() -> Any:
    """Empty; one for each test."""
    made = World()
    yield made
    made.close()


@pytest.fixture(scope="module")
def make_world() -> Any:
    """``make_world()`` is an empty one, closed with the module."""
    made: list[World] = []

    def make() -> World:
        made.append(World())
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture(scope="module")
def shared(load) -> Any:
    """A world with one model, for tests that leave nothing behind but counts."""
    made = World()
    made.add("pump", load("v1", version="1.0.0", bias=1.0))
    made.start()
    yield made
    made.close()


@pytest.fixture
def line(world):
    """``line()`` is a connection to the world, closed with the test."""
    made = []

    def opened() -> Line:
        made.append(Line(world.server.port))
        return made[-1]

    yield opened
    for one in made:
        one.close()


@pytest.fixture
def pump(world, load):
    """The slot of a world that serves one model."""
    slot = world.add("pump", load("v1", version="1.0.0", bias=1.0))
    world.start()
    return slot


@pytest.fixture(scope="session")
def load(make_variant):
    """``load("v1", version="1.0.0", seed=1)`` is a serving model."""

    def loaded(folder: str, **changes: Any) -> ServingModel:
        digest = "sha256:" + format(abs(hash(folder)) % 16**8, "08x") * 8
        return ServingModel.load(make_variant(folder, **changes), digest)

    return loaded


@pytest.fixture(scope="session")
def load_echo(tmp_path_factory) -> Any:
    """``load_echo("float32", "str")`` gives back what it is given, an input for each type."""

    def loaded(*dtypes: str, **options: Any) -> ServingModel:
        folder = echo_variant(tmp_path_factory.mktemp("echo"), *dtypes, **options)
        return ServingModel.load(folder, "sha256:" + "ec" * 32)

    return loaded
