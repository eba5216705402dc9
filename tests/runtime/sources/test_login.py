"""Who a registry is told that asks, and who is never told."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest
from pull_registry import pull_registry
from slot_world import bundle

from edgepack_contract.errors import SourceError
from edgepack_runtime.config import DownloadConfig, RegistryConfig
from edgepack_runtime.errors import TransientSourceError
from edgepack_runtime.sources.login import Login
from edgepack_runtime.sources.opening import Sources
from edgepack_runtime.sources.registry import Manner, RegistrySource
from edgepack_runtime.sources.source import Credentials

A = bundle("1.0.0", size=300_000)
CAROL = Credentials("carol", "s3cret")
BASIC = "Basic " + base64.b64encode(b"carol:s3cret").decode()
HOST = urlsplit("https://registry.example.com/models/digits")


@pytest.fixture
def registry():
    with pull_registry(A.path) as server:
        yield server


class Gate:
    """A registry that wants a token which it gives to carol, or Basic alone."""

    def __init__(self, registry, *, scheme="bearer", seconds=300) -> None:
        self.registry, self.scheme, self.seconds = registry, scheme, seconds
        self.tokens: list[tuple[dict, str | None]] = []
        self.good = ""
        registry.answer = self

    def __call__(self, handler) -> bool:
        shown = handler.headers.get("Authorization")
        if handler.path.startswith("/token"):
            self.tokens.append((parse_qs(urlsplit(handler.path).query), shown))
            self.good = f"t{len(self.tokens)}"
            said = {"token": self.good, "expires_in": self.seconds}
            handler.say(200 if shown == BASIC else 401, json.dumps(said).encode())
            return True
        if shown == (BASIC if self.scheme == "basic" else f"Bearer {self.good}") and shown:
            return False
        realm = f"http://127.0.0.1:{self.registry.port}/token"
        challenge = f'Bearer realm="{realm}",service="the registry",scope="repository:x:push"'
        wants = challenge if self.scheme == "bearer" else "Basic realm=r"
        handler.say(401, b"", {"WWW-Authenticate": wants})
        return True


def source(registry, who=CAROL, **manner):
    return RegistrySource(registry.url, credentials=who, manner=Manner(**manner))


def test_a_token_is_asked_for_once_for_pulling_from_one_repository(registry):
    gate = Gate(registry)
    some = source(registry)
    assert some.resolve(A.digest) is not None
    assert some.resolve("1.0.0") is not None
    ((query, shown),) = gate.tokens
    assert query == {"scope": ["repository:models/digits:pull"], "service": ["the registry"]}
    assert shown == BASIC
    shown_to_registry = [h.get("Authorization") for p, h in registry.asked if "/v2/" in p]
    assert shown_to_registry == [None, "Bearer t1", "Bearer t1"]


def test_a_token_that_ends_is_asked_for_anew(registry):
    gate, now = Gate(registry, seconds=60), [0.0]
    some = source(registry, clock=lambda: now[0])
    some.resolve("1.0.0")
    now[0] = 54.0
    some.resolve("1.0.0")
    assert len(gate.tokens) == 1
    now[0] = 56.0
    some.resolve("1.0.0")
    assert len(gate.tokens) == 2


def test_basic_is_shown_when_it_is_asked_for(registry):
    Gate(registry, scheme="basic")
    assert source(registry).resolve("1.0.0") is not None
    assert [h.get("Authorization") for _, h in registry.asked] == [None, BASIC]


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_a_wrong_password_is_no_reason_to_try_again(registry, scheme):
    Gate(registry, scheme=scheme)
    with pytest.raises(SourceError, match="answered 401") as caught:
        source(registry, Credentials("carol", "wrong")).resolve("1.0.0")
    assert caught.value.code == "refused"
    assert not isinstance(caught.value, TransientSourceError)
    assert len(registry.asked) <= 3
    assert "wrong" not in str(caught.value)


def login(who=CAROL, host=HOST, clock=lambda: 0.0) -> Login:
    return Login(host, "models/digits", who, clock)


@pytest.mark.parametrize(
    ("host", "realm", "asked"),
    [
        ("https://registry.example.com", "https://registry.example.com/token", True),
        ("https://registry.example.com", "https://auth.example.com/token", True),
        ("https://registry.example.com", "https://example.com/jwt/auth", True),
        ("https://registry.example.com", "https://registry.example.com.evil.net/t", False),
        ("https://registry.example.com", "https://evilexample.com/t", False),
        ("https://registry.example.com", "http://registry.example.com/t", False),
        ("https://registry.example.com", "https://u:p@auth.example.com/t", False),
        ("https://registry.example.com", "http://127.0.0.1/t", False),
        ("https://registry.example.com", "https://127.0.0.1/t", False),
        ("https://registry.example.com", "file:///etc/passwd", False),
        ("https://registry.example.com", "https://[half/t", False),
        ("https://registry.example.com", "", False),
        ("https://example.com", "https://other.com/t", False),
        ("https://192.0.2.7", "https://193.0.2.7/t", False),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5001/t", True),
        ("http://127.0.0.1:5000", "https://auth.example.com/t", False),
    ],
)
def test_tokens_are_asked_for_on_the_registrys_own_host_or_domain(host, realm, asked):
    sent = []

    def fetch(url, authorization):
        sent.append((url.netloc, authorization))
        return b'{"access_token": "abc"}'

    one = login(host=urlsplit(host))
    if asked:
        assert one.answer(f'Bearer realm="{realm}"', fetch)
        assert one.header() == "Bearer abc"
        assert len(sent) == 1
        return
    with pytest.raises(SourceError) as caught:
        one.answer(f'Bearer realm="{realm}"', fetch)
    assert (caught.value.code, sent) == ("bad-realm", [])


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"{}", b'{"token": 5}', b'{"token": ""}', b'{"token": "a\\r\\nX: y"}',
        b"<html>", b'{"token": "' + b"a" * 20_000 + b'"}', b'{"token": "\\u00e9"}',
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused(raw):
    with pytest.raises(SourceError) as caught:
        login().answer('Bearer realm="https://auth.example.com/t"', lambda *_: raw)
    assert caught.value.code == "bad-token"


def test_a_challenge_that_is_not_understood_is_not_answered():
    def fetch(*_):
        raise AssertionError("asked")

    for challenge in ("", "Negotiate", "Digest realm=x", "x" * 100_000, "Basic" * 9):
        assert not login().answer(challenge, fetch)
    assert not login(None).answer("Basic realm=r", fetch)


def test_nobody_may_be_given_a_token_too():
    asked = []

    def fetch(url, authorization):
        asked.append((url.query, authorization))
        return b'{"token": "for-all", "expires_in": true}'

    assert login(None).answer('bearer REALM="https://auth.example.com/t?a=b"', fetch)
    assert asked == [("a=b&scope=repository%3Amodels%2Fdigits%3Apull", None)]


def sources(registry, tmp_path, **changes) -> Sources:
    (tmp_path / "password").write_text("s3cret\n")
    known = {"user": "carol", "password_file": str(tmp_path / "password")} | changes
    one = RegistryConfig(host=f"127.0.0.1:{registry.port}", **known)
    return Sources(DownloadConfig(registries=[one]))


def test_a_password_file_is_read_each_time(registry, tmp_path):
    Gate(registry, scheme="basic")
    opened = sources(registry, tmp_path)
    (tmp_path / "password").write_text("old")
    with closing(opened.open(registry.url)) as one, pytest.raises(SourceError, match="401"):
        one.resolve("1.0.0")
    (tmp_path / "password").write_text("s3cret\n")
    with closing(opened.open(registry.url)) as one:
        assert one.resolve("1.0.0") is not None


def test_a_user_is_of_one_host_and_port(registry, tmp_path):
    opened = sources(registry, tmp_path)
    other = opened.open("http://127.0.0.1:9/models/digits")
    assert other.login.credentials is None
    assert opened.open(registry.url).login.credentials == CAROL
    assert "s3cret" not in repr(opened.open(registry.url).login)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"two\nlines", b"x" * 100_000])
def test_a_password_that_cannot_be_read_is_named(registry, tmp_path, content):
    opened = sources(registry, tmp_path)
    path = tmp_path / "password"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SourceError, match="password") as caught:
        opened.open(registry.url)
    assert caught.value.code == "no-password"
    assert str(path) in str(caught.value)
