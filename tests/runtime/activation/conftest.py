from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slot_world import World

MEMORY = Path("/dev/shm")


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory where there is one: these tests write a lot and measure nothing."""
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="edgepack-test-", dir=place) as made:
        yield Path(made)


@pytest.fixture
def world(root) -> World:
    return World(root)
