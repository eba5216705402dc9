"""A gRPC listener without the daemon, and calls to it without a client's help."""

from __future__ import annotations

import contextlib

import grpc
import pytest

from edgepack_runtime.config import ServeConfig
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.calls import answering_calls


@pytest.fixture(scope="module")
def listening():
    """``with listening(world, **settings) as port`` is a listener over the world's slots."""

    @contextlib.contextmanager
    def listen(world, **settings):
        config = ServeConfig(**{"grpc_port": 0} | settings)
        calls = answering_calls(App(world.slots), world.slots, config, Guard(config))
        made = world.wait(calls.__aenter__())
        try:
            yield made.port
        finally:
            world.wait(calls.__aexit__(None, None, None))

    return listen


class Caller:
    """Calls over one channel, by the protocol's own messages or none."""

    def __init__(self, port, **options):
        settings = [(f"grpc.{name}", value) for name, value in options.items()]
        self.channel = grpc.insecure_channel(f"localhost:{port}", settings)

    def begin(self, method, requests, **more):
        """A call that takes its messages, as bytes, from an iterator."""
        path = f"/inference.GRPCInferenceService/{method}"
        return self.channel.stream_stream(path)(requests, **more)


@pytest.fixture
def calling():
    """``calling(port)`` makes a :class:`Caller`."""
    with contextlib.ExitStack() as stack:

        def make(port, **options):
            made = Caller(port, **options)
            stack.callback(made.channel.close)
            return made

        yield make
