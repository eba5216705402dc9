"""By which way a registry is reached: proxies, private authorities, redirects to object stores."""

from __future__ import annotations

import ssl
from contextlib import closing

import pytest
from certificate_files import make_tls
from connect_proxy import connect_proxy
from pull_registry import pull_registry
from slot_world import bundle

from edgepack_contract.bundle import open_bundle, open_variant, read_blob
from edgepack_contract.errors import ConfigError, SourceError
from edgepack_contract.tls import client_context, read_authorities
from edgepack_runtime.config import DownloadConfig, RegistryConfig
from edgepack_runtime.errors import TransientSourceError
from edgepack_runtime.proxy import proxy_for
from edgepack_runtime.sources.opening import Sources
from edgepack_runtime.sources.registry import Manner, RegistrySource
from edgepack_runtime.sources.source import Credentials, Have, never

A = bundle("1.0.0", size=300_000)
CAROL = Credentials("carol", "s3cret")


@pytest.fixture
def registry():
    with pull_registry(A.path) as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def with_tls(server, folder, *hosts):
    files = make_tls(folder, *hosts)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return files


def layer_of(source):
    trusted = open_bundle(source, A.digest, keyring=None)
    return open_variant(trusted, source, trusted.variants[0]).layers["model.onnx"]


def test_a_registry_behind_a_proxy_with_an_authority_of_its_own(registry, tmp_path, monkeypatch):
    files = with_tls(registry, tmp_path / "tls", "registry.test")
    known = RegistryConfig(host="registry.test:5443", ca=str(files.authority))
    seen: list[str] = []
    with connect_proxy(registry.port, seen) as address:
        monkeypatch.setenv("HTTPS_PROXY", address)
        sources = Sources(DownloadConfig(registries=[known]))
        with closing(sources.open("https://registry.test:5443/models/digits")) as source:
            assert source.resolve("1.0.0") is not None
        assert seen[0].startswith("CONNECT registry.test:5443 HTTP/1.")
        assert "Proxy-Authorization: Basic YW5uOnNlY3JldA==" in seen[0]
        # what is said inside the tunnel has nothing of the proxy's password
        assert all("Proxy-Authorization" not in headers for _, headers in registry.asked)
        strangers = Sources().open("https://registry.test:5443/models/digits")
        with pytest.raises(SourceError, match="its certificate") as caught:
            strangers.resolve("1.0.0")
        assert "secret" not in str(caught.value)


def test_a_proxy_that_refuses_is_transient_and_its_password_is_not_told(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:secret@127.0.0.1:9")
    with pytest.raises(TransientSourceError, match="is not reachable") as caught:
        RegistrySource("https://registry.test/r").resolve("1.0.0")
    assert "secret" not in repr(caught.value)
    assert "secret" not in repr(proxy_for("registry.test"))


@pytest.mark.parametrize(
    ("environ", "host", "found"),
    [
        ({}, "r.example", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "r.example", ("p", 3128)),
        ({"https_proxy": "p:3128"}, "r.example", ("p", 3128)),
        ({"HTTPS_PROXY": "http://p"}, "r.example", ("p", 80)),
        ({"ALL_PROXY": "http://p:1"}, "r.example", ("p", 1)),
        ({"HTTP_PROXY": "http://p:1"}, "r.example", None),
        ({"HTTPS_PROXY": "http://p:1"}, "127.0.0.1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "localhost", None),
        ({"HTTPS_PROXY": "http://p:1"}, "::1", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "r.example"}, "r.example", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, "r.example", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "r.example", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other, 10.0.0.0/8"}, "10.1.2.3", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "11.1.2.3", ("p", 1)),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "ample"}, "r.example", ("p", 1)),
    ],
)
def test_which_proxy_the_environment_names(monkeypatch, environ, host, found):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    proxy = proxy_for(host)
    assert (None if proxy is None else (proxy.host, proxy.port)) == found


@pytest.mark.parametrize("address", ["socks5://u:secret@p:1", "https://p:1", "http://", "p:x"])
def test_another_kind_of_proxy_is_refused_without_its_password(monkeypatch, address):
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(ConfigError, match="HTTPS_PROXY is not of the form") as caught:
        proxy_for("r.example")
    assert "secret" not in str(caught.value)


def redirecting(server, there, part="/blobs/"):
    def answer(handler):
        if part not in handler.path:
            return False
        handler.say(307, b"", {"Location": there + handler.path})
        return True

    server.answer = answer


def test_blobs_may_be_of_another_host_which_is_not_told_who_asks(registry):
    with pull_registry(A.path) as store:
        redirecting(registry, f"http://127.0.0.1:{store.port}")
        source = RegistrySource(registry.url, credentials=CAROL, eager=True)
        layer = layer_of(source)
        assert len(read_blob(source, layer, what="model", max_bytes=layer.size)) == layer.size
        incoming = source.fetch(layer, Have(plain=1000), never)
        with closing(incoming):
            assert incoming.start == 1000
        assert all("Authorization" in headers for _, headers in registry.asked)
        assert all("Authorization" not in headers for _, headers in store.asked)
        assert store.asked[-1][1]["Range"] == "bytes=1000-"


def test_redirects_of_blobs_end_and_stay_safe(registry, tmp_path):
    files = with_tls(registry, tmp_path / "tls")
    trust = client_context(read_authorities(files.authority))
    url = registry.url.replace("http:", "https:")
    source = RegistrySource(url, credentials=CAROL, manner=Manner(tls=lambda _: trust))
    layer = layer_of(source)
    unsafe = (
        "http://127.0.0.1:1", "http://store.example", "ftp://store.example", "https://u@s.example",
        "https://[half", "file:///etc/passwd#", "//",
    )  # fmt: skip
    for there in unsafe:
        redirecting(registry, there)
        with pytest.raises(SourceError) as caught:
            source.open_blob(layer)
        assert caught.value.code == "bad-redirect", there
    redirecting(registry, "")
    with pytest.raises(SourceError, match="without end"):
        source.open_blob(layer)


def test_manifests_stay_on_their_host(registry):
    with pull_registry(A.path) as store:
        redirecting(registry, f"http://127.0.0.1:{store.port}", part="/manifests/")
        with pytest.raises(SourceError, match="only itself"):
            RegistrySource(registry.url).resolve("1.0.0")
        assert store.asked == []
