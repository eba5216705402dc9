"""Whatever is secret is taken out of a text, in every form that it may stand there."""

from __future__ import annotations

import json

import pytest

from edgepack_contract.sealing import derived_secret
from edgepack_runtime.config import DownloadConfig, RegistryConfig
from edgepack_runtime.local.redaction import redact, secrets_of


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("pull from https://bob:hunter22@registry.local/v2", "hunter22"),
        ("proxy http://user:pa%40ss@10.0.0.1:3128", "pa%40ss"),
        ("GET https://s3.local/blob?X-Signature=abcdef0123", "abcdef0123"),
        ("Authorization: Bearer abc.DEF-123_456", "abc.DEF-123_456"),
        ("authorization: basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ('{"password": "s3cret"}', "s3cret"),
        ("token=tkn-123456;", "tkn-123456"),
        ("-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----", "MIGHAgEA"),
        ("-----BEGIN EC PRIVATE KEY-----\nMIGHAgEA torn off", "MIGHAgEA"),
    ],
    ids=["registry", "proxy", "query", "bearer", "basic", "json", "pair", "key", "torn"],
)
def test_a_secret_is_known_by_its_form(text, secret):
    assert secret not in redact(text, [])


@pytest.mark.parametrize(
    "text",
    [
        "https://registry.local/v2/churn",
        "slot main: the token of this device",
        "sha256:" + "a" * 64,
    ],
    ids=["url", "words", "digest"],
)
def test_what_is_no_secret_stays(text):
    assert redact(text, []) == text


def test_a_secret_is_known_by_its_value_also_escaped():
    secret = 'a"b\\c d/é'
    text = f"{secret} {json.dumps(secret)} a%22b%5Cc%20d%2F%C3%A9"
    assert redact(text, [secret]).count("REDACTED") == 3


def test_a_short_value_does_not_take_words_apart():
    assert redact("the cat", ["cat"]) == "the cat"


def test_every_secret_file_of_a_device_is_read(device_config, tmp_path):
    for name in ("token", "tls.key", "password"):
        (tmp_path / name).write_text(f"secret of {name}\n")
    config = device_config(
        serve={"token_file": "token", "tls_key": "tls.key", "tls_certificate": "none"},
        download=DownloadConfig(registries=[RegistryConfig(
            host="r", user="u", password_file=str(tmp_path / "password"))]),
    )  # fmt: skip
    mac = bytes(range(32))
    found = secrets_of(config, {"HTTPS_PROXY": "http://u:proxy-pass@p:1", "HOME": "/root"})
    assert {f"secret of {name}" for name in ("token", "tls.key", "password")} <= found
    assert {mac.hex(), derived_secret(mac, "pull"), "proxy-pass"} <= found
    lines = (tmp_path / "device.key").read_text().splitlines()[1:-1]
    assert set(lines) <= found


def test_a_device_that_cannot_be_read_has_no_known_secrets():
    assert secrets_of(None, {"HTTPS_PROXY": "http://[::1"}) == set()
