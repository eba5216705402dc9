"""The store of a slot: complete entries only, and never the wrong thing removed."""

from __future__ import annotations

import pytest
from slot_world import TestCalls

from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.oci import describe_bytes
from edgepack_runtime.errors import DiskFullError
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.storage.store import Store, StoredSource

ONE, TWO, THREE = (f"sha256:{letter * 64}" for letter in "abc")


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(DurableFS(TestCalls()), tmp_path, reserve_bytes=0)
    store.fs.make_dirs(tmp_path)
    store.prepare()
    return store


def put(store: Store, digest: str) -> None:
    folder = store.stage(digest, needed_bytes=10)
    (folder / "model" / "model.onnx").write_bytes(b"graph")
    store.publish(digest)


def test_a_bundle_is_in_the_store_only_when_it_is_complete(store):
    store.stage(ONE, needed_bytes=10)
    assert not store.has(ONE)
    store.publish(ONE)
    assert store.has(ONE)
    assert not store.staging(ONE).exists()
    assert store.model(ONE).is_dir()


def test_collecting_keeps_what_is_needed_and_says_what_went(store):
    for digest in (ONE, TWO, THREE):
        put(store, digest)
    store.stage(f"sha256:{'d' * 64}", needed_bytes=1)
    assert store.collect({ONE, TWO}) == [THREE]
    assert (store.has(ONE), store.has(TWO), store.has(THREE)) == (True, True, False)
    assert list(store.staging(ONE).parent.iterdir()) == []
    assert store.collect({ONE, TWO}) == []


def test_what_a_removal_that_was_cut_off_left_is_removed_later(store):
    put(store, ONE)
    doomed = store.staging(ONE).with_name(f"{ONE.removeprefix('sha256:')}.gone")
    store.entry(ONE).rename(doomed)
    put(store, ONE)
    store.remove(ONE)
    assert not doomed.exists()
    assert not store.has(ONE)


def test_staging_one_bundle_removes_what_is_left_of_others(store):
    store.stage(ONE, needed_bytes=1)
    store.stage(TWO, needed_bytes=1)
    assert not store.staging(ONE).exists()
    assert store.staging(TWO).exists()


def test_room_is_looked_for_before_anything_is_written(store):
    with pytest.raises(DiskFullError, match="must stay free"):
        store.stage(ONE, needed_bytes=2**62)
    assert not store.staging(ONE).exists()


def test_a_stored_source_reads_files_and_follows_no_links(store, tmp_path):
    put(store, ONE)
    source = StoredSource(store.fs, store.entry(ONE))
    layer = describe_bytes("x", b"graph", path="model.onnx")
    with source.open_blob(layer) as stream:
        assert stream.read() == b"graph"
    assert source.files() == {"model.onnx"}
    assert source.resolve(ONE) is None
    model = store.model(ONE) / "model.onnx"
    model.unlink()
    (tmp_path / "elsewhere").write_bytes(b"graph")
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MalformedBundleError, match="cannot be read"):
        source.open_blob(layer)
    assert source.files() == {"model.onnx"}
