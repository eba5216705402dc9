"""Stand-ins for the demo's parts that tests of other parts need."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from edgepack_cli.demo.clients import Answer, DeviceClient, Outcome
from edgepack_cli.demo.supervisor import Child


def client_of(device, socket_path="/nowhere", *, rows=4, rate=1000.0, seed=1):
    """A client with ``rows`` rows, whose label is their number."""
    pixels = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return DeviceClient(
        device, Path(socket_path), model="digits", rows=pixels, labels=np.arange(rows), rate=rate,
        rng=random.Random(seed),
    )  # fmt: skip


@pytest.fixture
def make_client():
    return client_of


@pytest.fixture
def answered():
    """A client that got these answers: (at, outcome, version, correct)."""

    def make(device, *answers):
        client = client_of(device)
        client.answers += [
            Answer(at, Outcome(outcome), version, correct, words=f"at {at}")
            for at, outcome, version, correct in answers
        ]
        return client

    return make


@pytest.fixture
def child_of(tmp_path):
    """A child with these outages."""

    def make(*outages):
        return Child(
            "d", [], tmp_path / "log", lambda: True, outages=[list(pair) for pair in outages]
        )

    return make
