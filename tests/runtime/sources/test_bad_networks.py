"""Downloads through networks that cut, stall, reset, slice and alter, by seeded schedules."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest
from pull_registry import pull_registry
from slot_world import World, bundle
from toxic_proxy import Kind, Toxic, toxic_proxy

from edgepack_contract.errors import BundleError
from edgepack_contract.messages import Ref
from edgepack_runtime.errors import InterruptedInstallError, TransientSourceError
from edgepack_runtime.sources.opening import Sources
from edgepack_runtime.sources.registry import Manner
from edgepack_runtime.sources.source import Patience

A = bundle("1.0.0", size=300_000)
HASTE = Manner(patience=Patience(stall_seconds=0.1, least_seconds=5.0))


@pytest.fixture
def registry():
    with pull_registry(A.path) as server:
        server.packed = True
        yield server


@pytest.fixture
def device(tmp_path) -> World:
    world = World(tmp_path / "device")
    world.start()
    return world


def fetch(world: World, *addresses: str, stop=lambda: False) -> None:
    installer = world.agent._parts.installer
    installer._open_source = Sources(manner=HASTE).open
    sources = [f"http://{address}/models/digits" for address in addresses]
    ref = Ref(name="digits", digest=A.digest, sources=sources)
    installer.fetch(ref, interrupted=stop, progress=lambda _: None)


def schedule(seed: int) -> list[Toxic]:
    """Eight connections go wrong, most of them in the midst of the large layer."""
    rng = random.Random(seed)
    kinds = [kind for kind in Kind if kind is not Kind.PASS]
    return [
        Toxic(rng.choice(kinds), rng.choice([0, rng.randint(1, 900), rng.randint(1, 200_000)]),
              rng.choice([1000, 5000]))
        for _ in range(8)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_every_schedule_ends_in_the_right_bytes_or_a_clean_error(device, registry, seed):
    errors = []
    with toxic_proxy(registry.port, schedule(seed)) as proxy:
        while not device.store.has(A.digest):
            assert len(errors) <= 9, errors
            try:
                fetch(device, proxy.address)
            except (TransientSourceError, BundleError) as error:
                # bytes that were altered on the way are a bad bundle, all else passes
                errors.append(repr(error))
    device.agent._parts.installer.verify(A.ref())


CUT_AFTER, HEADS_AND_DOCUMENTS = 60_000, 12_000


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.RESET, Kind.STALL, Kind.HALF_OPEN])
def test_nothing_is_sent_twice(device, registry, kind):
    """A download that is cut every 60,000 bytes costs its bytes once, and its heads."""
    registry.packed = False
    whole = sum(registry.file.blobs().values())
    with toxic_proxy(registry.port) as proxy:
        tries = 0
        while not device.store.has(A.digest):
            tries += 1
            assert tries < 20
            # no document is as large as that
            proxy.toxics = [Toxic(kind, CUT_AFTER)] * 40
            try:
                fetch(device, proxy.address)
            except TransientSourceError:
                continue
        assert tries > 4
        # a reset throws away what has come and was not read yet, which a slow machine has more of
        thrown_away = CUT_AFTER if kind is Kind.RESET else 0
        assert proxy.passed < whole + tries * (HEADS_AND_DOCUMENTS + thrown_away)
    device.agent._parts.installer.verify(A.ref())


def test_the_next_source_goes_on_where_the_first_was_cut(device, registry):
    with toxic_proxy(registry.port, [Toxic(Kind.CUT, 100_000)] * 40) as proxy:
        registry.asked.clear()
        fetch(device, proxy.address, f"127.0.0.1:{registry.port}")
    ranges = [headers["Range"] for _, headers in registry.asked if "Range" in headers]
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").removesuffix("-")) > 90_000


def test_a_stalled_download_stops_at_once_when_something_newer_comes(device, registry):
    stop = threading.Event()
    patience = Manner(patience=Patience(stall_seconds=3600.0))
    with toxic_proxy(registry.port, [Toxic(Kind.STALL, 100_000)] * 40) as proxy:
        installer = device.agent._parts.installer
        installer._open_source = Sources(manner=patience).open
        source = f"http://{proxy.address}/models/digits"
        ref = Ref(name="digits", digest=A.digest, sources=[source])

        def progress(share):
            if share > 0.3:
                stop.set()

        with pytest.raises(InterruptedInstallError):
            installer.fetch(ref, interrupted=stop.is_set, progress=progress)


def test_what_came_before_is_what_is_kept(device, registry):
    toxics = [Toxic(Kind.CUT, 100_000)] * 40
    with toxic_proxy(registry.port, toxics) as proxy, pytest.raises(TransientSourceError):
        fetch(device, proxy.address)
    part = (device.store.staging(A.digest) / "model" / "model.onnx").read_bytes()
    fetch(device, f"127.0.0.1:{registry.port}")
    whole = (device.store.model(A.digest) / "model.onnx").read_bytes()
    assert 90_000 < len(part) < len(whole)
    assert hashlib.sha256(whole[: len(part)]).digest() == hashlib.sha256(part).digest()
