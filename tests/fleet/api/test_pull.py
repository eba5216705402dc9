"""The OCI pull API: what a registry client needs, byte for byte."""

from __future__ import annotations

import hashlib
import io
from contextlib import closing
from typing import BinaryIO

import pytest
from bundle_samples import PUBLISHER, keyring, three_variants
from fleet_http import MAC_KEY, bundle_file, device_header, open_fleet, served
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.bundle import open_bundle, open_variant, verify_layers
from edgepack_contract.layout import write_bundle
from edgepack_contract.oci import Descriptor
from edgepack_contract.sealing import derived_secret
from edgepack_fleet.api.ranges import (
    Span,
    UnsatisfiableRangeError,
    is_unchanged,
    requested_span,
)
from edgepack_runtime.sources.registry import RegistrySource
from edgepack_runtime.sources.source import Credentials, Have, never


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    with open_fleet(folder) as fleet:
        fleet.add_device("pi-1")
        path = folder / "digits.edgepack"
        write_bundle(path, three_variants(), signer=PUBLISHER, evidence={"report.json": b"{}"})
        assert fleet.push(path).status_code == 201
        assert fleet.push(bundle_file(folder, version="1.1.0")).status_code == 201
        yield fleet


@pytest.fixture(scope="module")
def device(fleet):
    return fleet.client(Authorization=device_header("pi-1"))


@pytest.fixture(scope="module")
def index(device):
    return device.get("/v2/digits/manifests/1.0.0")


class Registry:
    """A blob source over the API, as a device has one."""

    def __init__(self, client):
        self.client = client

    def resolve(self, reference: str) -> bytes | None:
        answer = self.client.get(f"/v2/digits/manifests/{reference}")
        return answer.content if answer.status_code == 200 else None

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        return io.BytesIO(self.client.get(f"/v2/digits/blobs/{descriptor.digest}").content)


def test_a_device_proves_everything_that_it_pulls(device):
    source = Registry(device)
    bundle = open_bundle(source, "1.0.0", keyring=keyring(), name="digits")
    assert bundle.signed_by == PUBLISHER.public.fingerprint
    for variant in bundle.variants:
        verify_layers(open_variant(bundle, source, variant), source)


def test_the_devices_own_client_pulls_and_resumes(fleet):
    credentials = Credentials("pi-1", derived_secret(MAC_KEY, "pull"))
    with served(fleet) as url:
        source = RegistrySource(f"{url}/digits", credentials=credentials, eager=True)
        bundle = open_bundle(source, "1.0.0", keyring=keyring(), name="digits")
        variant = open_variant(bundle, source, bundle.variants[-1])
        verify_layers(variant, source)
        layer = variant.layers["model.onnx"]
        rest = source.fetch(layer, Have(plain=3), never)
        with source.open_blob(layer) as whole, closing(rest):
            assert (whole.read()[3:], rest.start) == (rest.stream.read(layer.size), 3)


def test_the_root_says_that_this_is_a_registry(device):
    answer = device.get("/v2/")
    assert answer.status_code == 200
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_an_index_comes_with_its_type_and_digest(index):
    digest = f"sha256:{hashlib.sha256(index.content).hexdigest()}"
    assert index.headers["Content-Type"] == "application/vnd.oci.image.index.v1+json"
    assert index.headers["Docker-Content-Digest"] == digest
    assert index.headers["ETag"] == f'"{digest}"'
    assert index.headers["Content-Length"] == str(len(index.content))


def test_a_manifest_comes_by_digest(device, index):
    for entry in index.json()["manifests"]:
        answer = device.get(f"/v2/digits/manifests/{entry['digest']}")
        assert answer.headers["Content-Type"] == entry["mediaType"]
        assert len(answer.content) == entry["size"]


def test_head_says_the_same_without_a_body(device, index):
    digest = index.headers["Docker-Content-Digest"]
    for path in (f"/v2/digits/manifests/{digest}", f"/v2/digits/blobs/{digest}"):
        whole, head = device.get(path), device.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("Content-Length", "Content-Type", "ETag", "Docker-Content-Digest"):
            assert head.headers[name] == whole.headers[name]


def test_tags_are_sorted_and_paged(device, index):
    digest = index.headers["Docker-Content-Digest"][7:]
    tags = device.get("/v2/digits/tags/list").json()["tags"]
    assert tags == sorted(tags)
    assert {"1.0.0", "1.1.0", f"sha256-{digest}.sig", f"sha256-{digest}.evidence"} <= set(tags)
    assert len(tags) == 6
    seen, path = [], "/v2/digits/tags/list?n=4"
    while path:
        answer = device.get(path)
        seen += answer.json()["tags"]
        link = answer.headers.get("Link")
        path = link[1 : link.index(">")] if link else None
    assert seen == tags


def test_a_range_gives_these_bytes(device, index):
    path = f"/v2/digits/blobs/{index.headers['Docker-Content-Digest']}"
    whole = index.content
    for header, expected in (
        ("bytes=0-0", whole[:1]), ("bytes=10-19", whole[10:20]), ("bytes=5-", whole[5:]),
        ("bytes=-7", whole[-7:]), ("bytes=3-99999999", whole[3:]), ("bytes=-99999999", whole),
    ):  # fmt: skip
        answer = device.get(path, headers={"Range": header})
        assert answer.status_code == 206, header
        assert answer.content == expected
        start = whole.index(expected) if header != "bytes=0-0" else 0
        assert answer.headers["Content-Range"] == (
            f"bytes {start}-{start + len(expected) - 1}/{len(whole)}"
        )
        assert answer.headers["Content-Length"] == str(len(expected))


def test_an_interrupted_download_is_resumed(device, index):
    path = f"/v2/digits/blobs/{index.headers['Docker-Content-Digest']}"
    first = device.get(path, headers={"Range": "bytes=0-99"})
    rest = device.get(path, headers={"Range": "bytes=100-", "If-Range": first.headers["ETag"]})
    assert rest.status_code == 206
    assert first.content + rest.content == index.content
    changed = device.get(path, headers={"Range": "bytes=100-", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, index.content)


def test_a_range_behind_the_end_is_416(device, index):
    path = f"/v2/digits/blobs/{index.headers['Docker-Content-Digest']}"
    for header in (f"bytes={len(index.content)}-", "bytes=-0"):
        answer = device.get(path, headers={"Range": header})
        assert answer.status_code == 416
        assert answer.headers["Content-Range"] == f"bytes */{len(index.content)}"


@pytest.mark.parametrize(
    "header", ["bytes=0-1,3-4", "lines=1-2", "bytes=9-3", "bytes=-", "bytes=a-b", "bytes=1", ""]
)
def test_what_is_no_single_range_gets_everything(device, index, header):
    path = f"/v2/digits/blobs/{index.headers['Docker-Content-Digest']}"
    answer = device.get(path, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, index.content)


def test_what_the_client_has_is_not_sent_again(device, index):
    etag = index.headers["ETag"]
    digest = index.headers["Docker-Content-Digest"]
    for path in ("/v2/digits/manifests/1.0.0", f"/v2/digits/blobs/{digest}"):
        for value in (etag, f'W/{etag}, "x"', "*"):
            answer = device.get(path, headers={"If-None-Match": value})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["ETag"] == etag
        assert device.get(path, headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "digits/manifests/9.9.9", "digits/manifests/latest", f"digits/manifests/sha256:{'0' * 64}",
        f"digits/blobs/sha256:{'0' * 64}", "digits/blobs/sha256:xyz", "digits/blobs/1.0.0",
        "nothing/tags/list", "nothing/manifests/1.0.0", "digits/blobs/..%2f..%2ffleet.db",
        "library/digits/manifests/1.0.0", "digits/blobs/", "digits/manifests/%00",
    ],
)  # fmt: skip
def test_what_is_not_there_is_404_in_the_registry_form(device, path):
    answer = device.get(f"/v2/{path}")
    assert answer.status_code == 404
    (error,) = answer.json()["errors"]
    assert error["code"] == "NAME_UNKNOWN"
    assert error["message"]


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
def test_nothing_is_pushed_or_deleted_through_it(fleet, method):
    client = fleet.client("admin")
    answer = client.request(method, "/v2/digits/manifests/1.0.0", content=b"{}")
    assert answer.status_code == 405
    assert answer.json()["errors"][0]["code"] == "UNSUPPORTED"


@given(
    size=st.integers(0, 50),
    first=st.none() | st.integers(0, 60),
    last=st.none() | st.integers(0, 60),
)
def test_a_span_lies_within_the_blob_and_is_what_was_asked_for(size, first, last):
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    whole = list(range(size))
    try:
        span = requested_span(header, size, if_range=None, etag='"e"')
    except UnsatisfiableRangeError:
        wanted = whole[first:] if first is not None else whole[size - min(last, size) :]
        assert wanted == []
        return
    if span is None:
        assert (first is None and last is None) or (
            first is not None and last is not None and last < first
        )
        return
    assert 0 <= span.start < span.stop <= size
    asked = whole[-last:] if first is None else whole[first : None if last is None else last + 1]
    assert whole[span.start : span.stop] == asked


def test_a_span_knows_its_length():
    assert Span(2, 5, 9).length == 3
    assert Span(2, 5, 9).content_range == "bytes 2-4/9"


def test_a_validator_matches_itself_only():
    assert not is_unchanged(None, '"a"')
    assert not is_unchanged('"ab"', '"a"')
    assert is_unchanged('"b", W/"a"', '"a"')
