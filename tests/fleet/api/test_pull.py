"""The OCI pull API: what a registry client needs, byte for byte."""

from __future__ import annotations

import hashlib
import io
import random
import zlib
from contextlib import closing
from typing import BinaryIO

import httpx
import pytest
from bundle_samples import PUBLISHER, keyring, one_variant, three_variants
from fleet_http import MAC_KEY, bundle_file, device_header, open_fleet, served
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.bundle import BundleFile, open_bundle, open_variant, verify_layers
from edgepack_contract.layout import write_bundle
from edgepack_contract.oci import Descriptor
from edgepack_contract.sealing import derived_secret
from edgepack_fleet.api.codings import wants_gzip
from edgepack_fleet.api.ranges import (
    Span,
    UnsatisfiableRangeError,
    is_unchanged,
    requested_span,
)
from edgepack_fleet.packing import make_packed
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


WORDS = b"".join(f"row {number} of a table that packs well\n".encode() for number in range(9000))
NOISE = random.Random(1).randbytes(50_000)


@pytest.fixture(scope="module")
def layers(fleet):
    """The layers of a bundle of which one packs well and one does not."""
    files = {"golden.safetensors": NOISE, "model.onnx": WORDS, "reference.json": b"{}"}
    path = fleet.folder / "words.edgepack"
    write_bundle(path, one_variant(files, name="words", version="1.0.0"), signer=PUBLISHER)
    assert fleet.push(path).status_code == 201
    with BundleFile.open(path) as file:
        bundle = open_bundle(file, file.digest, keyring=None)
        return open_variant(bundle, file, bundle.variants[0]).layers


def test_a_compressed_copy_is_another_representation_of_the_blob(device, layers):
    path = f"/v2/words/blobs/{layers['model.onnx'].digest}"
    plain = device.get(path, headers={"Accept-Encoding": "identity"})
    packed = device.get(path, headers={"Accept-Encoding": "gzip"})
    head = device.head(path, headers={"Accept-Encoding": "gzip"})
    assert (plain.content, packed.content) == (WORDS, WORDS)
    assert "Content-Encoding" not in plain.headers
    assert int(packed.headers["Content-Length"]) < 0.5 * len(WORDS)
    assert packed.headers["ETag"] != plain.headers["ETag"]
    assert not packed.headers["ETag"].startswith("W/")
    for answer in (packed, head):
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Content-Length"] == packed.headers["Content-Length"]
    for answer in (plain, packed, head):
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert answer.headers["Docker-Content-Digest"] == layers["model.onnx"].digest
    again = {"Accept-Encoding": "gzip", "If-None-Match": packed.headers["ETag"]}
    assert device.get(path, headers=again).status_code == 304


def test_what_saves_nothing_is_sent_as_it_is(device, layers):
    path = f"/v2/words/blobs/{layers['golden.safetensors'].digest}"
    answer = device.get(path, headers={"Accept-Encoding": "gzip"})
    assert answer.content == NOISE
    assert "Content-Encoding" not in answer.headers


def test_a_range_is_of_the_representation_and_of_no_other(fleet, layers):
    path, shown = f"/v2/words/blobs/{layers['model.onnx'].digest}", device_header("pi-1")
    with served(fleet) as url, httpx.Client(base_url=url, headers={"Authorization": shown}) as web:

        def raw(**headers):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            with web.stream("GET", path, headers={"Accept-Encoding": "gzip"} | names) as answer:
                return answer, b"".join(answer.iter_raw())

        first, whole = raw()
        etag = first.headers["ETag"]
        rest, end = raw(Range="bytes=100-", If_Range=etag)
        assert (rest.status_code, rest.headers["ETag"]) == (206, etag)
        assert rest.headers["Content-Range"] == f"bytes 100-{len(whole) - 1}/{len(whole)}"
        assert zlib.decompress(whole[:100] + end, 31) == WORDS
        # a beginning of the plain bytes is never gone on with by packed ones, nor the reverse
        plain = f'"{layers["model.onnx"].digest}"'
        other, content = raw(Range="bytes=100-", If_Range=plain)
        assert (other.status_code, content) == (200, whole)
        other, content = raw(Range="bytes=100-", If_Range=etag, Accept_Encoding="identity")
        assert (other.status_code, content) == (200, WORDS)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, False), ("", False), ("identity", False), ("gzip", True), ("GZIP", True),
        ("x-gzip", True), ("gzip;q=0", False), ("gzip;q=0.0", False), ("gzip; q=0.5", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True), ("*", False), ("br", False),
        ("gzip;q=0.5, identity", False), ("gzip, identity;q=0.5", True), ("gzip;q=9", False),
    ],
)  # fmt: skip
def test_who_wants_a_compressed_copy(header, wanted):
    assert wants_gzip(header) is wanted


def test_a_copy_is_made_once_and_only_where_it_is_worth_it(tmp_path):
    (tmp_path / "words").write_bytes(WORDS)
    (tmp_path / "noise").write_bytes(NOISE)
    (tmp_path / "short").write_bytes(b"a" * 1000)
    target = tmp_path / "copy"
    assert make_packed(tmp_path / "words", target, incoming=tmp_path)
    assert zlib.decompress(target.read_bytes(), 31) == WORDS
    first = target.stat()
    assert make_packed(tmp_path / "words", target, incoming=tmp_path)
    assert target.stat() == first
    for name in ("noise", "short"):
        assert not make_packed(tmp_path / name, tmp_path / "none", incoming=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"words", "noise", "short", "copy"}
