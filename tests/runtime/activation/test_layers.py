"""Bringing layers: compressed, copied from where the device has them, or as they are."""

from __future__ import annotations

import gzip
import json
import os
import random
import zlib
from collections import Counter

import bundle_samples
import pytest
from pull_registry import pull_registry
from slot_world import PROBATION, Sample, World, folder

from edgepack_contract.bundle import BundleFile, open_bundle, open_variant
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.instructions import Obeyed
from edgepack_contract.layout import write_bundle
from edgepack_contract.messages import Ref, SlotDesired
from edgepack_contract.states import Phase
from edgepack_runtime.activation import layers
from edgepack_runtime.config import DownloadConfig
from edgepack_runtime.errors import DiskFullError, InterruptedInstallError, TransientSourceError
from edgepack_runtime.sources.opening import Sources

TABLE = b"".join(f"row {number} of what packs well\n".encode() for number in range(20_000))
NOISE = random.Random(5).randbytes(200_000)


def made(version: str, **files: bytes) -> Sample:
    """A signed bundle of these files."""
    all_files = {"golden.safetensors": b"golden rows", "reference.json": b"{}"} | {
        name.replace("_", "."): content for name, content in files.items()
    }
    path = folder() / f"layers-{version}.edgepack"
    content = bundle_samples.one_variant(all_files, version=version)
    digest = write_bundle(path, content, signer=bundle_samples.PUBLISHER)
    return Sample(path, digest, version, "digits")


@pytest.fixture(scope="module")
def a() -> Sample:
    return made("1.0.0", model_onnx=TABLE, golden_safetensors=NOISE)


@pytest.fixture(scope="module")
def b() -> Sample:
    """Another graph beside the same golden rows."""
    return made("1.1.0", model_onnx=TABLE[::-1], golden_safetensors=NOISE)


@pytest.fixture
def registry(a):
    with pull_registry(a.path) as server:
        server.packed = True
        yield server


@pytest.fixture
def device(tmp_path) -> World:
    world = World(tmp_path / "device")
    world.start()
    return world


def fetch(world: World, sample: Sample, *sources: str, stop=lambda: False, progress=lambda _: None):
    ref = Ref(name="digits", digest=sample.digest, sources=list(sources))
    installer = world.agent._parts.installer
    installer._open_source = Sources().open
    installer.fetch(ref, interrupted=stop, progress=progress)
    installer.verify(sample.ref())


def digest_of(sample: Sample, path: str) -> str:
    with BundleFile.open(sample.path) as file:
        bundle = open_bundle(file, sample.digest, keyring=None)
        return open_variant(bundle, file, bundle.variants[0]).layers[path].digest


def part_of(world: World, sample: Sample):
    hexes = digest_of(sample, "model.onnx").removeprefix("sha256:")
    return world.store.staging(sample.digest) / "packed" / f"{hexes}.gz"


def cut_at(registry, size: int):
    """Answers end after ``size`` bytes of a blob, once."""
    once = []

    def answer(handler):
        if once or "/blobs/" not in handler.path or handler.content() != TABLE:
            return False
        raw = zlib.compressobj(wbits=31)
        whole = raw.compress(TABLE) + raw.flush()
        once.append(handler.path)
        etag = f'{registry.etag}{handler.path[-8:]}"'
        headers = {"Content-Encoding": "gzip", "ETag": etag}
        handler.say(200, whole[:size], headers, length=len(whole))
        handler.close_connection = True
        return True

    registry.answer = answer


def test_a_compressed_copy_is_fetched_and_unpacked(device, registry, a):
    shares = []
    fetch(device, a, registry.url, progress=shares.append)
    asked = registry.blobs_asked(digest_of(a, "model.onnx"))
    assert [one["Accept-Encoding"] for one in asked] == ["gzip, identity;q=0.5"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {path.name for path in device.store.entry(a.digest).iterdir()} >= {"model", "proof"}
    assert not (device.store.entry(a.digest) / "packed").exists()


def test_what_does_not_pack_is_fetched_as_it_is(device, registry, a):
    fetch(device, a, registry.url)
    asked = registry.blobs_asked(digest_of(a, "golden.safetensors"))
    assert [one["Accept-Encoding"] for one in asked] == ["gzip, identity;q=0.5", "identity"]


def test_a_compressed_copy_that_was_cut_goes_on_under_its_validator(device, registry, a):
    cut_at(registry, 20_000)
    with pytest.raises(TransientSourceError):
        fetch(device, a, registry.url)
    assert part_of(device, a).stat().st_size == 20_000
    fetch(device, a, registry.url)
    last = registry.blobs_asked(digest_of(a, "model.onnx"))[-1]
    assert last["Range"] == "bytes=20000-"
    assert last["If-Range"].startswith(registry.etag)


def test_another_copy_than_the_one_that_was_cut_is_begun_anew(device, registry, a):
    cut_at(registry, 20_000)
    with pytest.raises(TransientSourceError):
        fetch(device, a, registry.url)
    registry.etag = '"packed-otherwise-'
    fetch(device, a, registry.url)
    assert len(registry.blobs_asked(digest_of(a, "model.onnx"))) == 2


@pytest.mark.parametrize("damage", ["bytes", "validator", "empty", "longer", "whole"])
def test_a_part_that_was_damaged_costs_a_download_and_no_more(device, registry, a, damage):
    cut_at(registry, 20_000)
    with pytest.raises(TransientSourceError):
        fetch(device, a, registry.url)
    part = part_of(device, a)
    etag = part.with_suffix(".etag")
    match damage:
        case "bytes":
            part.write_bytes(os.urandom(20_000))
        case "validator":
            etag.write_bytes(b"\xff\xfe")
        case "empty":
            part.write_bytes(b"")
        case "longer":
            part.write_bytes(b"\0" * 10_000_000)
        case "whole":
            part.write_bytes(b"\0" * int(etag.read_text().split()[0]))
    fetch(device, a, registry.url)


def test_a_copy_that_was_whole_is_not_fetched_again(device, registry, a):
    with pytest.raises(InterruptedInstallError):
        fetch(device, a, registry.url, stop=lambda: part_is_whole(device, a))
    before = len(registry.blobs_asked(digest_of(a, "model.onnx")))
    fetch(device, a, registry.url)
    assert len(registry.blobs_asked(digest_of(a, "model.onnx"))) == before == 1


def part_is_whole(world: World, sample: Sample) -> bool:
    part = part_of(world, sample)
    if not part.exists():
        return False
    return part.stat().st_size == int(part.with_suffix(".etag").read_text().split()[0])


def hostile(registry, raw: bytes, **headers: str):
    def answer(handler):
        if "/blobs/" not in handler.path or "gzip" not in handler.headers["Accept-Encoding"]:
            return False
        handler.say(200, raw, {"Content-Encoding": "gzip", "ETag": '"x"'} | headers)
        return True

    registry.answer = answer


BOMB = gzip.compress(b"\0" * 50_000_000)


@pytest.mark.parametrize(
    "raw",
    [b"", b"no gzip", BOMB, BOMB[:1000], zlib.compress(TABLE)],
    ids=["nothing", "other bytes", "a bomb", "half of it", "zlib"],
)
def test_a_bad_copy_is_thrown_away_and_the_layer_fetched_as_it_is(device, registry, a, raw):
    hostile(registry, raw)
    fetch(device, a, registry.url)
    assert registry.blobs_asked(digest_of(a, "model.onnx"))[-1]["Accept-Encoding"] == "identity"


def test_a_copy_without_a_strong_validator_is_not_taken(device, registry, a):
    hostile(registry, BOMB, ETag='W/"weak"')
    fetch(device, a, registry.url)
    assert not part_of(device, a).exists()


def test_without_room_for_both_the_layer_is_fetched_as_it_is(device, registry, a, monkeypatch):
    free = 2 * len(TABLE) - 1
    monkeypatch.setattr(device.store.fs, "free_bytes", lambda _: free)
    fetch(device, a, registry.url)
    asked = registry.blobs_asked(digest_of(a, "model.onnx"))
    assert [one["Accept-Encoding"] for one in asked] == ["identity"]


def test_a_layer_that_the_device_has_is_not_fetched(device, a, b):
    device.install(a)
    with pull_registry(b.path) as registry:
        shares = []
        fetch(device, b, registry.url, progress=shares.append)
        assert registry.blobs_asked(digest_of(b, "golden.safetensors")) == []
        assert len(registry.blobs_asked(digest_of(b, "model.onnx"))) == 1
    assert shares == sorted(shares)
    one, two = (device.store.model(one.digest) / "golden.safetensors" for one in (a, b))
    # a copy of its own: a block that goes bad must not damage two models
    assert one.stat().st_ino != two.stat().st_ino


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "gone", "a link", "a bad list"])
def test_a_layer_that_went_bad_on_the_device_is_fetched(device, a, b, damage):
    device.install(a)
    mine = device.store.model(a.digest) / "golden.safetensors"
    match damage:
        case "other bytes":
            mine.write_bytes(b"\0" * len(NOISE))
        case "shorter":
            mine.write_bytes(NOISE[:1000])
        case "gone":
            mine.unlink()
        case "a link":
            mine.rename(mine.with_name("moved"))
            mine.symlink_to(mine.with_name("moved"))
        case "a bad list":
            listed = mine.with_name("edgepack.json")
            entries = json.loads(listed.read_bytes())
            for entry in entries["files"]:
                entry["path"] = f"../../../../{entry['path']}"
            listed.write_text(json.dumps(entries))
    with pull_registry(b.path) as registry:
        fetch(device, b, registry.url)
        assert len(registry.blobs_asked(digest_of(b, "golden.safetensors"))) == 1


def test_another_slot_spares_a_download_too(device, tmp_path, a, b):
    device.install(a)
    other = device.root / "slots" / "other"
    other.parent.joinpath("main").rename(other)
    device.start()
    with pull_registry(b.path) as registry:
        fetch(device, b, registry.url)
        assert registry.blobs_asked(digest_of(b, "golden.safetensors")) == []


def test_a_long_download_is_made_durable_on_the_way(device, registry, a, monkeypatch):
    monkeypatch.setattr(layers, "FLUSH_BYTES", 100_000)
    registry.packed = False
    calls = Counter()
    monkeypatch.setattr(device.calls, "fdatasync", lambda fd: calls.update(["fdatasync"]))
    fetch(device, a, registry.url)
    assert calls["fdatasync"] == len(TABLE) // 100_000 + len(NOISE) // 100_000


def test_when_the_disk_is_short_what_no_model_needs_goes_first(device, a, b, monkeypatch):
    """A bundle that nobody runs is removed, and what serves or served before is not."""
    device.install(a)
    stray = device.root / "slots" / "main" / "store" / ("e" * 64)
    stray.mkdir()
    (stray / "big").write_bytes(b"\0" * 1_000_000)
    monkeypatch.setattr(
        device.store.fs, "free_bytes", lambda _: 0 if stray.exists() else 100_000_000
    )
    device.install(b)
    assert not stray.exists()
    assert device.store.has(a.digest)
    assert device.store.has(b.digest)


def test_a_disk_that_stays_full_is_told_with_what_was_removed(device, a, monkeypatch):
    device.store.stage(f"sha256:{'d' * 64}", needed_bytes=1)
    monkeypatch.setattr(device.store.fs, "free_bytes", lambda _: 0)
    with pytest.raises(DiskFullError, match=r"left was removed \(dddddddddddd\), which was not"):
        fetch(device, a, str(a.path))
    with pytest.raises(DiskFullError, match="nothing could be removed but what serves"):
        fetch(device, a, str(a.path))


def test_a_closed_link_is_waited_for_however_long(tmp_path, registry, a):
    """Sixty waits are more than all tries; then the link is another one and it goes on."""
    sources = Sources(DownloadConfig(metered=["lo"]))
    waits = []

    class Patient(World):
        def _pass_time(self, seconds):
            if self.state.phase == Phase.DOWNLOADING:
                waits.append(self.agent.status())
            if len(waits) == 60:
                sources.reconfigure(DownloadConfig())
            return super()._pass_time(seconds)

    device = Patient(tmp_path / "device")
    device.start()
    device.agent._parts.installer._open_source = sources.open
    ref = Ref(name="digits", digest=a.digest, sources=[registry.url])
    device.agent.wish(SlotDesired(active=ref, probation=PROBATION), Obeyed(epoch=1, generation=1))
    device.settle()
    assert (device.host.serving, len(waits)) == (a.digest, 60)
    assert {(one.code, one.words[:28]) for one in waits} == {
        ("waits-unmetered", "waits for an unmetered link:")
    }


def test_altered_copies_never_reach_the_store(device, registry, a):
    def alter(handler):
        if "/blobs/" not in handler.path:
            return False
        raw = bytearray(handler.content())
        raw[-1] ^= 1
        handler.send_part(bytes(raw), {})
        return True

    registry.answer = alter
    with pytest.raises(MalformedBundleError):
        fetch(device, a, registry.url)
    assert not device.store.has(a.digest)
