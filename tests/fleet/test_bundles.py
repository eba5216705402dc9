"""The bundle store: proven before visible, the same push twice, never another content."""

from __future__ import annotations

import threading

import pytest
from bundle_samples import PUBLISHER, STRANGER, fixed_key, keyring, one_variant, three_variants
from fleet_http import START_MS, bundle_file
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from edgepack_contract.errors import MalformedBundleError, UntrustedBundleError
from edgepack_contract.layout import write_bundle
from edgepack_fleet.bundles import BundleStore, find_bundle, list_bundles
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Bundle
from edgepack_fleet.errors import ConflictError, NotFoundError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A signed bundle in a file."""
    return bundle_file(tmp_path_factory.mktemp("made"))


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield database
    database.close()


@pytest.fixture
def store(tmp_path, database):
    store = BundleStore(tmp_path, database, keyring)
    store.prepare()
    return store


def push(store, path):
    return store.push(path, now_ms=START_MS, record=lambda session, pushed: None)


def count(database):
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Bundle))


def blobs(tmp_path):
    return sorted(path.name for path in (tmp_path / "blobs" / "sha256").iterdir())


def incoming(tmp_path):
    return list((tmp_path / "incoming").iterdir())


def test_a_pushed_bundle_is_there_with_all_its_parts(store, database, tmp_path, made):
    pushed = push(store, made)
    assert (pushed.name, pushed.version, pushed.created) == ("digits", "1.0.0", True)
    with database.read() as session:
        row = find_bundle(session, "digits", "1.0.0")
        assert row.digest == pushed.digest
        assert row.signed_by == PUBLISHER.public.fingerprint
        assert row.security_version == 3
        assert row.description["precision"] == "fp32"
        assert set(row.tags) == {
            "1.0.0", f"sha256-{row.digest[7:]}.sig", f"sha256-{row.digest[7:]}.evidence"
        }  # fmt: skip
    assert len(blobs(tmp_path)) > 6
    assert incoming(tmp_path) == []


def test_every_variant_is_listed_with_what_it_needs(store, database, tmp_path):
    path = tmp_path / "three.edgepack"
    write_bundle(path, three_variants(), signer=PUBLISHER)
    push(store, path)
    with database.read() as session:
        variants = find_bundle(session, "digits", "1.0.0").variants
    assert [one["name"] for one in variants] == ["generic", "x86-64-v3-int8", "arm64-dot"]
    assert variants[1]["features"] == ["avx512_vnni", "x86-64-v3"]
    assert all(one["size"] > 0 for one in variants)


def test_the_same_push_again_changes_nothing(store, database, tmp_path, made):
    first = push(store, made)
    before = blobs(tmp_path)
    again = push(store, made)
    assert (again.digest, again.created) == (first.digest, False)
    assert (count(database), blobs(tmp_path)) == (1, before)


def test_another_content_under_an_existing_version_is_refused(store, database, tmp_path, made):
    digest = push(store, made).digest
    other = bundle_file(tmp_path, security_version=4)
    with pytest.raises(ConflictError, match="new version"):
        push(store, other)
    with database.read() as session:
        assert find_bundle(session, "digits", "1.0.0").digest == digest


def test_a_bundle_signed_anew_is_the_same_bundle(tmp_path, database, made):
    other = fixed_key(7)
    in_force = [keyring()]
    store = BundleStore(tmp_path, database, lambda: in_force[-1])
    store.prepare()
    first = push(store, made)
    in_force.append(keyring(key=other))
    again = push(store, bundle_file(tmp_path, signer=other))
    assert (again.digest, again.created) == (first.digest, False)
    with database.read() as session:
        assert find_bundle(session, "digits", "1.0.0").signed_by == other.public.fingerprint


@pytest.mark.parametrize(
    ("signer", "code", "says"),
    [
        (None, "unsigned", ["edgepack keys init", "edgepack sign"]),
        (STRANGER, None, []),
    ],
)
def test_what_nobody_vouches_for_leaves_nothing(store, database, tmp_path, signer, code, says):
    path = bundle_file(tmp_path, signer=signer)
    with pytest.raises(UntrustedBundleError) as refused:
        push(store, path)
    assert code in (None, refused.value.code)
    assert all(words in str(refused.value) for words in says)
    assert (count(database), blobs(tmp_path), incoming(tmp_path)) == (0, [], [])


def test_a_publisher_may_sign_only_its_names(tmp_path, database, made):
    store = BundleStore(tmp_path, database, lambda: keyring(names=["churn-*"]))
    store.prepare()
    with pytest.raises(UntrustedBundleError, match="may sign"):
        push(store, made)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store that stays empty, because it is only given what it must refuse."""
    folder = tmp_path_factory.mktemp("empty")
    database = Database(f"sqlite:///{folder / 'fleet.db'}")
    store = BundleStore(folder, database, keyring)
    store.prepare()
    yield folder, database, store
    database.close()


@given(st.data())
def test_an_altered_or_truncated_file_is_never_visible(made, empty, data):
    folder, database, store = empty
    raw = bytearray(made.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw = raw[:at]
    else:
        raw[at] ^= data.draw(st.integers(1, 255))
    path = folder / "altered.edgepack"
    path.write_bytes(raw)
    with pytest.raises((MalformedBundleError, UntrustedBundleError)):
        push(store, path)
    assert (count(database), blobs(folder), incoming(folder)) == (0, [], [])


def test_a_failing_audit_leaves_the_bundle_invisible(store, database, made):
    def broken(session, pushed):
        raise RuntimeError("no audit, no push")

    with pytest.raises(RuntimeError):
        store.push(made, now_ms=START_MS, record=broken)
    assert count(database) == 0
    assert push(store, made).created


def test_an_upload_that_is_not_finished_is_removed(store, tmp_path):
    with store.receive() as upload:
        upload.write(b"half a bundle")
        assert len(incoming(tmp_path)) == 1
    assert incoming(tmp_path) == []


def test_a_start_removes_what_a_crash_left(store, tmp_path):
    (tmp_path / "incoming" / "tmpleft").write_bytes(b"half a bundle")
    store.prepare()
    assert incoming(tmp_path) == []


def test_parallel_pushes_of_one_bundle_make_one(store, database, made):
    results = []
    threads = [threading.Thread(target=lambda: results.append(push(store, made))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(one.created for one in results) == [False, False, False, True]
    assert count(database) == 1


def test_lists_are_by_name_and_version_and_go_on_behind_a_cursor(store, database, tmp_path):
    for name, version in (("churn", "1.0.0"), ("digits", "1.0.0"), ("digits", "1.1.0")):
        push(store, bundle_file(tmp_path, name=name, version=version))
    with database.read() as session:
        everything = list_bundles(session, limit=10)
        behind = list_bundles(session, after=("churn", "1.0.0"), limit=1)
        named = list_bundles(session, name="digits", limit=10)
        with pytest.raises(NotFoundError, match="edgepack bundle push"):
            find_bundle(session, "digits", "9.9.9")
    assert [(one.name, one.version) for one in everything] == [
        ("churn", "1.0.0"), ("digits", "1.0.0"), ("digits", "1.1.0")
    ]  # fmt: skip
    assert [(one.name, one.version) for one in behind] == [("digits", "1.0.0")]
    assert [one.version for one in named] == ["1.0.0", "1.1.0"]


def test_a_blob_belongs_to_its_bundle_name_only(store, database, tmp_path, made):
    push(store, made)
    write_bundle(
        tmp_path / "other.edgepack",
        one_variant({"golden.safetensors": b"g", "model.onnx": b"secret"}, name="other"),
        signer=PUBLISHER,
    )
    push(store, tmp_path / "other.edgepack")
    with database.read() as session:
        index = find_bundle(session, "other", "1.0.0").digest
        assert store.blob(session, "other", index).size > 0
        with pytest.raises(NotFoundError):
            store.blob(session, "digits", index)
        with pytest.raises(NotFoundError):
            store.manifest(session, "digits", index)
