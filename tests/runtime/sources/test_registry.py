"""Pulling from a registry that is slow, wrong, hostile, or half-way gone."""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import closing

import pytest
from pull_registry import PullRegistry, pull_registry
from slot_world import PROBATION, World, bundle

from edgepack_contract.bundle import open_bundle, open_variant, verify_layers
from edgepack_contract.certificates import Authority
from edgepack_contract.errors import ConfigError, MalformedBundleError, SourceError
from edgepack_contract.instructions import Obeyed
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Ref, SlotDesired
from edgepack_contract.states import Phase
from edgepack_contract.tls import client_context
from edgepack_runtime.errors import InterruptedInstallError, TransientSourceError
from edgepack_runtime.sources.addresses import checked_url
from edgepack_runtime.sources.archive import ArchiveSource
from edgepack_runtime.sources.opening import FleetHost, Sources
from edgepack_runtime.sources.registry import Manner, RegistrySource, _unreachable
from edgepack_runtime.sources.source import Credentials, Have, Patience, never

A = bundle("1.0.0", size=300_000)


@pytest.fixture
def registry():
    with pull_registry(A.path) as server:
        yield server


def model_layer(source):
    trusted = open_bundle(source, A.digest, keyring=None)
    variant = open_variant(trusted, source, trusted.variants[0])
    return variant, variant.layers["model.onnx"]


def test_a_bundle_pulled_is_the_bundle_in_the_file(registry):
    source = RegistrySource(registry.url)
    variant, _ = model_layer(source)
    verify_layers(variant, source)
    paths = [path for path, _ in registry.asked]
    assert f"/v2/models/digits/manifests/{A.digest}" in paths
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in registry.asked)


def test_what_is_not_there_is_none_or_an_error(registry):
    source = RegistrySource(registry.url)
    _, layer = model_layer(source)
    assert source.resolve("9.9.9") is None
    registry.answer = lambda handler: handler.say(404, b"") or True
    with pytest.raises(SourceError) as caught:
        source.open_blob(layer)
    assert caught.value.code == "not-found"
    assert not isinstance(caught.value, TransientSourceError)


@pytest.mark.parametrize("ranges", [True, False], ids=["with ranges", "without"])
def test_going_on_half_way(registry, ranges):
    source = RegistrySource(registry.url)
    _, layer = model_layer(source)
    whole = source.open_blob(layer).read()
    registry.ranges = ranges
    incoming = source.fetch(layer, Have(plain=1000), never)
    with closing(incoming):
        assert incoming.start == (1000 if ranges else 0)
        assert incoming.stream.readall() == whole[incoming.start :]
    assert registry.asked[-1][1]["Range"] == "bytes=1000-"


def test_another_range_than_asked_for_is_refused(registry):
    source = RegistrySource(registry.url)
    _, layer = model_layer(source)
    odd = {"Content-Range": "bytes 7-9/10"}
    registry.answer = lambda handler: handler.say(206, b"abc", odd) or True
    with pytest.raises(SourceError, match="another range"):
        source.fetch(layer, Have(plain=1000), never)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_pass_is_transient(registry, status):
    registry.answer = lambda handler: handler.say(status, b"") or True
    with pytest.raises(TransientSourceError, match=str(status)):
        RegistrySource(registry.url).resolve(A.digest)


@pytest.mark.parametrize("status", [400, 401, 403, 410, 418])
def test_what_will_not_pass_is_not(registry, status):
    registry.answer = lambda handler: handler.say(status, b"") or True
    with pytest.raises(SourceError, match=str(status)) as caught:
        RegistrySource(registry.url).resolve(A.digest)
    assert not isinstance(caught.value, TransientSourceError)


def test_nobody_there_is_transient(registry):
    source = RegistrySource("http://127.0.0.1:9/models/digits")
    with pytest.raises(TransientSourceError, match="not reachable"):
        source.resolve(A.digest)


def test_an_early_end_is_an_error_not_an_end(registry):
    source = RegistrySource(registry.url)
    _, layer = model_layer(source)

    def cut(handler):
        handler.say(200, b"x" * 100, length=layer.size)
        handler.close_connection = True
        return True

    registry.answer = cut
    with source.open_blob(layer) as stream, pytest.raises(TransientSourceError):
        stream.read()


def test_an_endless_manifest_is_cut_off(registry):
    registry.answer = lambda handler: handler.say(200, b" " * (LIMITS.manifest_bytes + 1)) or True
    with pytest.raises(MalformedBundleError, match="more than"):
        RegistrySource(registry.url).resolve(A.digest)


def test_a_source_that_stalls_is_given_up(registry):
    released = threading.Event()

    def stall(handler):
        return released.wait(30)

    registry.answer = stall
    source = RegistrySource(registry.url, manner=Manner(patience=Patience(stall_seconds=0.05)))
    try:
        with pytest.raises(TransientSourceError):
            source.resolve(A.digest)
    finally:
        released.set()


def test_a_source_that_drips_is_given_up(registry):
    times = iter([0.0, *[1e9] * 20])
    source = RegistrySource(registry.url, manner=Manner(clock=lambda: next(times)))
    with pytest.raises(TransientSourceError, match="too slow"):
        source.resolve(A.digest)


def test_compression_that_was_not_asked_for_is_refused(registry):
    registry.answer = lambda handler: handler.say(200, b"x", {"Content-Encoding": "gzip"}) or True
    with pytest.raises(SourceError, match="gzip"):
        RegistrySource(registry.url).resolve(A.digest)


def test_redirects_stay_on_their_host_and_end(registry):
    def once(handler):
        if "moved" in handler.path:
            return False
        handler.say(307, b"", {"Location": handler.path.replace("/v2/", "/v2/moved/")})
        return True

    registry.answer = once
    assert RegistrySource(registry.url).resolve(A.digest) is not None
    registry.answer = lambda handler: handler.say(302, b"", {"Location": handler.path}) or True
    with pytest.raises(SourceError, match="without end"):
        RegistrySource(registry.url).resolve(A.digest)
    for there in ("http://example.com/x", "//example.com/x", "https://127.0.0.1/x"):
        away = {"Location": there}
        registry.answer = lambda handler, away=away: handler.say(307, b"", away) or True
        with pytest.raises(SourceError, match="only itself"):
            RegistrySource(registry.url).resolve(A.digest)


def test_credentials_are_sent(registry):
    source = RegistrySource(
        registry.url, credentials=Credentials("device", "pass:word"), eager=True
    )
    source.resolve(A.digest)
    # RFC 7617, section 2: base64 of user, colon, password
    assert registry.asked[-1][1]["Authorization"] == "Basic ZGV2aWNlOnBhc3M6d29yZA=="


def test_addresses_that_are_refused():
    with pytest.raises(ConfigError) as caught:
        Sources().open("http://fleet.example/models")
    assert caught.value.code == "insecure-source"


def test_a_certificate_nobody_vouches_for_is_no_reason_to_try_again():

    error = ssl.SSLCertVerificationError("self-signed certificate")
    found = _unreachable(checked_url("https://fleet.example/models"), error)
    assert found.code == "bad-certificate"
    assert not isinstance(found, TransientSourceError)


SECRET = Credentials("pi-1", "secret")


def fleet_host(url, authorities):
    def tls():
        return client_context([one.pem.decode() for one in authorities])

    return FleetHost(url, SECRET, tls=tls)


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("https://fleet.example", "https://fleet.example/v", True),
        ("https://fleet.example", "https://fleet.example:5000/v", True),
        ("https://fleet.example", "https://cdn.example/v", False),
        ("https://fleet.example", "https://fleet.example.evil.example/v", False),
        ("https://fleet.example", "http://127.0.0.1:5000/v", False),
        (None, "http://127.0.0.1:5000/v", True),
        (None, "http://localhost:5000/v", True),
        ("http://127.0.0.1:8080", "http://localhost:8080/v", True),
        (None, "https://cdn.example/v", False),
    ],
)
def test_only_the_fleets_host_learns_who_asks(url, address, shown):
    source = Sources(fleet=fleet_host(url, [])).open(address)
    assert isinstance(source, RegistrySource)
    assert source.login.header() == (SECRET.header if shown else None)
    assert source.login.credentials == (SECRET if shown else None)


def test_the_fleets_host_is_believed_by_the_keyrings_authorities(registry, tmp_path):
    authority, other = (
        Authority.create(PrivateKey.generate(), name="t", now_ms=time.time_ns() // 1_000_000)
        for _ in range(2)
    )
    key = PrivateKey.generate()
    issued = authority.issue_server(
        key.public, hosts=["127.0.0.1"], now_ms=time.time_ns() // 1_000_000
    )
    (tmp_path / "server.pem").write_bytes(issued.pem)
    write_private_key(tmp_path / "server.key", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    registry.socket = context.wrap_socket(registry.socket, server_side=True)
    url = registry.url.replace("http:", "https:")
    with closing(Sources(fleet=fleet_host(url, [authority])).open(url)) as source:
        model_layer(source)
    _, headers = registry.asked[0]
    assert headers["Authorization"] == SECRET.header
    for wrong in (fleet_host(url, [other]), fleet_host("https://elsewhere.example", [authority])):
        with pytest.raises(SourceError, match="its certificate") as caught:
            model_layer(Sources(fleet=wrong).open(url))
        assert caught.value.code == "bad-certificate"


def test_a_file_is_a_source_too(tmp_path):
    with closing(Sources().open(str(A.path))) as source:
        assert isinstance(source, ArchiveSource)
        _, layer = model_layer(source)
        incoming = source.fetch(layer, Have(plain=70_000), never)
        with closing(incoming):
            assert incoming.stream.read() == source.open_blob(layer).read()
    with pytest.raises(SourceError):
        Sources().open(str(tmp_path / "none"))


@pytest.fixture
def device(tmp_path, registry) -> World:
    """A slot that fetches from the registry."""
    world = World(tmp_path / "device")
    world.start()
    world.agent._parts.installer._open_source = Sources().open
    return world


def fetch(world: World, registry: PullRegistry, interrupted=lambda: False, progress=None):
    ref = Ref(name="digits", digest=A.digest, sources=[registry.url])
    return world.agent._parts.installer.fetch(
        ref, interrupted=interrupted, progress=progress or (lambda share: None)
    )


def test_an_interrupted_download_goes_on_where_it_stopped(device, registry):
    shares = []
    with pytest.raises(InterruptedInstallError):
        fetch(device, registry, lambda: bool(shares) and shares[-1] > 0.5, shares.append)
    registry.asked.clear()
    fetch(device, registry)
    ranges = [headers["Range"] for _, headers in registry.asked if "Range" in headers]
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").removesuffix("-")) > 100_000
    device.agent._parts.installer.verify(A.ref())


def test_a_wrong_beginning_is_fetched_again_from_the_first_byte(device, registry):
    shares = []
    with pytest.raises(InterruptedInstallError):
        fetch(device, registry, lambda: bool(shares) and shares[-1] > 0.5, shares.append)
    part = device.store.staging(A.digest) / "model" / "model.onnx"
    part.write_bytes(b"\0" * part.stat().st_size)
    fetch(device, registry)
    device.agent._parts.installer.verify(A.ref())


def test_altered_bytes_never_reach_the_store(device, registry):
    def alter(handler):
        if "/blobs/" not in handler.path:
            return False
        raw = bytearray(handler.content())
        raw[-1] ^= 1
        handler.say(200, bytes(raw))
        return True

    registry.answer = alter
    with pytest.raises(MalformedBundleError, match="digest"):
        fetch(device, registry)
    assert not device.store.has(A.digest)


def test_the_next_source_is_asked_when_one_fails(device, registry):
    ref = Ref(
        name="digits",
        digest=A.digest,
        sources=["http://127.0.0.1:9/r", "http://elsewhere.example/r", registry.url],
    )
    installer = device.agent._parts.installer
    installer.fetch(ref, interrupted=lambda: False, progress=lambda _: None)
    assert device.store.has(A.digest)


def test_an_install_over_the_network(device, registry):
    ref = Ref(name="digits", digest=A.digest, sources=[registry.url])
    device.agent.wish(SlotDesired(active=ref, probation=PROBATION), Obeyed(generation=1, epoch=1))
    device.settle()
    assert (device.state.phase, device.host.serving) == (Phase.SUCCEEDED, A.digest)
    progress = [one.progress for one in device.host.reports]
    assert any(0 < share < 1 for share in progress)
