"""Bundles go to a registry and come back byte for byte, whatever the registry does on the way."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from bundle_samples import PUBLISHER, keyring, one_variant, three_variants
from fake_registry import fake_registry

from edgepack_contract.errors import MalformedBundleError, SourceError, UntrustedBundleError
from edgepack_contract.layout import write_bundle
from edgepack_contract.oci import signature_tag
from edgepack_packager.errors import RecipeError
from edgepack_packager.registry import repository as module
from edgepack_packager.registry.carrying import pull_bundle, push_bundle
from edgepack_packager.registry.reference import Access, Reference
from edgepack_packager.registry.repository import RegistryRepository


@pytest.fixture
def registry():
    with fake_registry() as state:
        yield state


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "digits.edgepack"
    write_bundle(path, three_variants(), signer=PUBLISHER, evidence={"report.json": b"{}"})
    return path


@pytest.fixture
def large(tmp_path):
    """A bundle whose model takes several chunks."""
    path = tmp_path / "large.edgepack"
    files = {"golden.safetensors": b"g", "model.onnx": bytes(range(256)) * 200}
    write_bundle(path, one_variant(files))
    return path


@pytest.fixture
def place(registry):
    waited = []

    def opened(tag=None, access=None, digest=None):
        reference = Reference(registry.address, "r", tag, digest)
        return RegistryRepository(reference, access or Access(), sleep=waited.append)

    opened.waited = waited
    return opened


def push(path, place, tag=None, access=None, **options):
    with place(tag, access) as repository:
        return push_bundle(path, repository, tell=lambda _: None, **options)


def pull(place, path, tag="1.0.0", access=None, digest=None, **options):
    with place(tag, access, digest) as repository:
        return pull_bundle(repository, path, **options)


def test_what_comes_back_is_what_was_pushed(bundle, place, tmp_path):
    done = push(bundle, place)
    assert done.reference.endswith(f"/r:1.0.0@{done.digest}")
    assert pull(place, tmp_path / "back.edgepack", keyring=keyring()) == done.digest
    assert (tmp_path / "back.edgepack").read_bytes() == bundle.read_bytes()
    pull(place, tmp_path / "same.edgepack", tag=None, digest=done.digest)
    assert (tmp_path / "same.edgepack").read_bytes() == bundle.read_bytes()


def test_blobs_that_are_there_are_not_sent_again(bundle, place, registry):
    first = push(bundle, place)
    before = registry.count("POST", "uploads")
    again = push(bundle, place)
    assert registry.count("POST", "uploads") == before > 0
    assert (first.skipped, again.uploaded) == (0, 0)


def test_the_index_comes_last(bundle, place, registry):
    push(bundle, place)
    assert registry.asked[-1] == ("PUT", "/v2/r/manifests/1.0.0")


def test_a_tag_of_another_bundle_is_not_taken_unasked(bundle, large, place, registry):
    push(bundle, place, "latest")
    with pytest.raises(RecipeError, match="--overwrite"):
        push(large, place, "latest")
    assert push(large, place, "latest", overwrite=True).digest in registry.manifests


def test_any_tag_can_be_pulled(bundle, place, tmp_path):
    push(bundle, place, "latest")
    pull(place, tmp_path / "back.edgepack", tag="latest")
    assert (tmp_path / "back.edgepack").read_bytes() == bundle.read_bytes()


def test_large_blobs_go_in_chunks(large, place, registry, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 10_000)
    push(large, place)
    assert registry.count("PATCH", "uploads") == 5
    pull(place, tmp_path / "back.edgepack")
    assert (tmp_path / "back.edgepack").read_bytes() == large.read_bytes()


def test_what_breaks_off_goes_on_where_it_broke(large, place, registry, tmp_path):
    push(large, place)
    registry.cut = 20_000
    pull(place, tmp_path / "back.edgepack")
    assert (tmp_path / "back.edgepack").read_bytes() == large.read_bytes()
    assert "bytes=20000-" in registry.ranges


def test_what_breaks_off_again_and_again_is_given_up(large, place, registry, tmp_path):
    push(large, place)
    registry.cut = 100
    with pytest.raises(SourceError, match="broke off") as caught:
        pull(place, tmp_path / "back.edgepack")
    assert caught.value.code == "truncated"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.edgepack"]


def test_a_busy_registry_is_asked_again(bundle, place, registry):
    registry.busy = 3
    push(bundle, place)
    assert place.waited == [1.0, 2.0, 4.0]


def test_a_registry_that_stays_busy_is_given_up(bundle, place, registry):
    registry.busy = 99
    with pytest.raises(SourceError, match="answered 503"):
        push(bundle, place)


def test_other_bytes_than_the_digest_are_refused(large, place, registry, tmp_path):
    push(large, place)
    (digest,) = [name for name, raw in registry.blobs.items() if len(raw) == 51_200]
    for other in (bytes(51_200), bytes(51_201), bytes(10**6)):
        registry.replaced = {digest: other}
        with pytest.raises(MalformedBundleError, match="sent other bytes") as caught:
            pull(place, tmp_path / "back.edgepack")
        assert caught.value.code == "wrong-digest"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.edgepack"]


def test_another_manifest_than_the_digest_says_is_refused(bundle, large, place, registry, tmp_path):
    done, other = push(bundle, place), push(large, place, "other")
    registry.replaced = {done.digest: registry.manifests[other.digest]}
    with pytest.raises(MalformedBundleError, match="answers sha256"):
        pull(place, tmp_path / "back.edgepack", tag=None, digest=done.digest)


def test_a_manifest_without_end_is_refused(place, registry, tmp_path):
    registry.manifests["1.0.0"] = bytes(2 * 1024 * 1024)
    with pytest.raises(MalformedBundleError, match="more than 1048576 bytes"):
        pull(place, tmp_path / "back.edgepack")


def test_a_signature_that_is_gone_is_missed(bundle, place, registry, tmp_path):
    done = push(bundle, place)
    del registry.manifests[signature_tag(done.digest)]
    with pytest.raises(UntrustedBundleError):
        pull(place, tmp_path / "back.edgepack", keyring=keyring())
    pull(place, tmp_path / "back.edgepack")


def test_a_registry_that_rewrites_manifests_is_of_no_use(bundle, place, registry):
    registry.rewrites = True
    with pytest.raises(SourceError, match="it rewrites manifests"):
        push(bundle, place)


def test_uploads_go_nowhere_else(bundle, place, registry):
    registry.elsewhere = "http://127.0.0.2:9"
    with pytest.raises(SourceError, match=r"wants uploads at '127\.0\.0\.2:9'"):
        push(bundle, place)


@pytest.mark.parametrize("login", ["basic", "bearer"])
def test_a_login_is_shown_when_it_is_asked_for(
    bundle, place, registry, tmp_path, login, monkeypatch
):
    monkeypatch.setattr(module, "CHUNK_BYTES", 2000)
    registry.login = login
    access = Access("carol", "s3cret")
    push(bundle, place, access=access)
    pull(place, tmp_path / "back.edgepack", access=access)
    assert (tmp_path / "back.edgepack").read_bytes() == bundle.read_bytes()


@pytest.mark.parametrize("login", ["basic", "bearer"])
@pytest.mark.parametrize("access", [Access(), Access("carol", "wrong")])
def test_who_is_not_let_in_is_told_how(bundle, place, registry, login, access):
    registry.login = login
    with pytest.raises(SourceError, match="docker login") as caught:
        push(bundle, place, access=access)
    assert caught.value.code == "unauthorized"
    assert place.waited == []


def test_what_docker_login_stored_is_used(bundle, place, registry, tmp_path):
    registry.login = "basic"
    stored = {"auths": {registry.address: {"auth": base64.b64encode(b"carol:s3cret").decode()}}}
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(json.dumps(stored))
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps(stored))
    push(bundle, place)
    assert registry.manifests


def test_a_credential_helper_is_asked(bundle, place, registry, tmp_path, monkeypatch):
    registry.login = "basic"
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\ncat >/dev/null\necho \'{"Username":"carol","Secret":"s3cret"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for folder in ("docker", ".docker"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"credsStore": "test"}')
    push(bundle, place)
    assert registry.manifests


def test_plain_http_is_for_loopback_unless_it_is_asked_for():
    def scheme(host, access):
        with RegistryRepository(Reference(host, "r"), access) as repository:
            return repository._base.split(":")[0]

    assert scheme("127.0.0.1:5000", Access()) == "http"
    assert scheme("localhost", Access(plain_http=False)) == "https"
    assert scheme("registry.example", Access()) == "https"
    assert scheme("registry.example", Access(plain_http=True)) == "http"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("localhost:5000/a/b_c:1.0.0", ("localhost:5000", "a/b_c", "1.0.0", None)),
        ("[::1]:5000/a", ("[::1]:5000", "a", None, None)),
        (f"r.example/a@sha256:{'0' * 64}", ("r.example", "a", None, f"sha256:{'0' * 64}")),
    ],
)
def test_references_are_read(text, parts):
    found = Reference.parse(text)
    assert (found.host, found.repository, found.tag, found.digest) == parts
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    ["a", "r.example/A", "https://r.example/a", "r.example/a:", "r.example/../a", "u:p@r.example/a",
     "r.example/a@sha256:00", "-o/a", "r.example/a:1 2"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(RecipeError, match="is not of the form"):
        Reference.parse(text)


def test_the_fake_registry_checks_digests(large, place, registry):
    push(large, place)
    assert all(
        name == f"sha256:{hashlib.sha256(raw).hexdigest()}" for name, raw in registry.blobs.items()
    )
