"""The gate: one test a row, and that nothing passes it which it should have stopped."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import FileFacts, TlsFacts, admit
from edgepack_contract.loopback import is_loopback
from edgepack_fleet.config import FleetConfig, HttpConfig, KeysConfig, MqttConfig
from edgepack_fleet.security import RULES, Facts, leaving, refuse_demo, security_gate

KEYS = KeysConfig(fleet="fleet.key", keyring="keyring.json", owner="ab" * 32)
AUTHORITY = msgspec.structs.replace(
    KEYS, authority="authority.key", authority_certificate="authority.pem"
)
TLS = {"tls_certificate": "tls/service.pem", "tls_key": "tls/service.key"}
OUT = {"host": "0.0.0.0", "public_url": "https://fleet.example", **TLS}
BROKER = {
    "host": "broker.example", "tls_ca": "ca.pem", "client_certificate": "c.pem",
    "client_key": "c.key",
}  # fmt: skip


def facts(*, http=None, mqtt=None, keys=AUTHORITY, **changes):
    config = FleetConfig(
        data_dir="data", keys=keys, http=HttpConfig(**(http or {})), mqtt=MqttConfig(**(mqtt or {}))
    )
    values = {"now": 1000.0, "admins": 1, "source": "/etc/fleet.toml"}
    return Facts(config=config, **{**values, **changes})


def file(mode, *, of_root=False, path="a.key"):
    return (FileFacts(path, mode, of_root=of_root),)


def broken(found):
    return [violation.key for violation in security_gate(found)]


def test_a_row_for_every_rule():
    # a rule that no row of the table below breaks has no test
    assert len(INSECURE) >= len(RULES)
    hit = {id(rule) for case in INSECURE for rule in RULES if rule.broken(case[0])}
    assert len(hit) == len(RULES)


INSECURE = [
    (facts(http={"host": "0.0.0.0"}), "http.host", "edgepack fleet certificate --config /etc/fle"),
    (facts(http={"host": "::"}), "http.host", "tls/service.pem"),
    (facts(http={"host": "fleet.example"}), "http.host", 'http.host = "127.0.0.1"'),
    (facts(http={**OUT, "tls_key": None}), "http.tls_key", "private key"),
    (facts(http={**OUT, "tls_certificate": None}), "http.tls_certificate", "certificate"),
    (facts(http=OUT, tls=TlsFacts("cannot read x")), "http.tls_certificate", "cannot read x"),
    (facts(http=OUT, tls=TlsFacts(expires=999.0)), "http.tls_certificate", "expired on 1970-01-01"),
    (facts(http=OUT, tls=TlsFacts(expires=-math.inf)), "http.tls_certificate", "unknown day"),
    (facts(http={"host": "0.0.0.0", "behind_proxy": True}), "http.trusted_proxies", "networks"),
    (facts(http={"public_url": "http://fleet.example"}), "http.public_url", "https address"),
    (facts(http={"public_url": "ftp://127.0.0.1"}), "http.public_url", "neither https"),
    (facts(http={"public_url": "https://["}), "http.public_url", "neither https"),
    (facts(mqtt={**BROKER, "tls_ca": None}), "mqtt.tls_ca", "--host broker.example"),
    (facts(mqtt={"host": "b", "tls_ca": "ca"}), "mqtt.client_certificate", "mqtt.password_file"),
    (facts(mqtt={"host": "b", "tls_ca": "ca", "username": "u"}), "mqtt.client_certificate", "mqtt"),
    (facts(files={"keys.fleet": file(0o644)}), "keys.fleet", "chmod 600 a.key"),
    (
        facts(files={"keys.fleet": file(0o600) + file(0o640, path="b.key")}),
        "keys.fleet", "chmod 600 b.key",
    ),
    (facts(files={"keys.authority": file(0o604)}), "keys.authority", "chmod 600 a.key"),
    (facts(files={"http.tls_key": file(0o640)}), "http.tls_key", "chmod 600 a.key"),
    (facts(files={"http.tls_key": file(0o660, of_root=True)}), "http.tls_key", "mode 0660"),
    (facts(files={"mqtt.password_file": file(0o644)}), "mqtt.password_file", "chmod 600 a.key"),
    (facts(files={"mqtt.client_key": file(0o644)}), "mqtt.client_key", "chmod 600 a.key"),
    (facts(http=OUT, files={"data_dir": file(0o755, path="data")}), "data_dir", "chmod 700 data"),
    (facts(http=OUT, admins=0), "http.host", "edgepack fleet init --config /etc/fleet.toml"),
    (
        facts(http={"public_url": "https://fleet.example"}, admins=0),
        "http.host", "edgepack fleet init",
    ),
    (facts(http=OUT, keys=KEYS), "keys.authority", "edgepack keys rotate authority"),
    (facts(mqtt=BROKER, keys=KEYS), "keys.authority", "see mqtt.host"),
    (facts(http=OUT, demo=True), "keys.keyring", "edgepack keys init"),
    (facts(mqtt=BROKER, demo=True), "keys.keyring", "demo"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "key", "words"), INSECURE)
def test_each_row_is_refused_with_its_key_and_what_mends_it(found, key, words):
    (violation,) = security_gate(found)
    assert violation.key == key
    assert words in str(violation)
    assert "{" not in str(violation)
    with pytest.raises(ConfigError, match="refusing to start, 1 setting is insecure:\n  ") as got:
        admit(security_gate(found), None)
    assert got.value.code == "insecure"


SECURE = [
    facts(),
    facts(keys=KEYS, admins=0, demo=True),
    facts(files={"data_dir": file(0o755)}),
    facts(http={"host": "::1"}, keys=KEYS),
    facts(http={"host": "localhost"}, keys=KEYS),
    facts(http={"host": "0.0.0.0", "unix": "fleet.sock"}, keys=KEYS),
    facts(http={"public_url": "http://127.0.0.1:8080"}, keys=KEYS, admins=0),
    facts(http=OUT, tls=TlsFacts(expires=1001.0)),
    facts(http={"host": "10.0.0.5", "behind_proxy": True, "trusted_proxies": ("10.0.0.7/32",)}),
    facts(mqtt=BROKER, admins=0),
    facts(mqtt={"host": "b", "tls_ca": "ca", "username": "u", "password_file": "p"}),
    facts(files={"http.tls_key": file(0o440, of_root=True)}),
    facts(files={"keys.fleet": file(None)}),
]


@pytest.mark.parametrize("found", SECURE)
def test_what_is_secure_or_stays_on_this_machine_starts(found):
    assert broken(found) == []
    assert admit(security_gate(found), None) is None


def test_all_that_is_wrong_is_said_at_once_one_a_line():
    found = facts(http={"host": "0.0.0.0"}, mqtt={"host": "b"}, keys=KEYS, admins=0)
    with pytest.raises(ConfigError) as got:
        admit(security_gate(found), "  ")
    lines = str(got.value).splitlines()
    assert lines[0] == "refusing to start, 5 settings are insecure:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "http.host", "mqtt.tls_ca", "mqtt.client_certificate", "http.host", "keys.authority",
    ]  # fmt: skip


def test_a_reason_lets_it_start_but_for_a_demo_or_what_cannot_work():
    waiver = admit(security_gate(facts(http={"host": "0.0.0.0"})), "behind a VPN")
    assert (waiver.reason, waiver.settings) == ("behind a VPN", ["http.host"])
    for found in (
        facts(http={"host": "0.0.0.0"}, demo=True),
        facts(http={**OUT, "tls_key": None}),
        facts(http=OUT, tls=TlsFacts("no")),
    ):
        with pytest.raises(ConfigError):
            admit(security_gate(found), "behind a VPN")


def test_a_demos_keyring_is_refused_for_what_reaches_beyond():
    from bundle_samples import keyring

    demo = msgspec.structs.replace(keyring(), demo=True)
    refuse_demo(facts().config, demo)
    refuse_demo(facts(http=OUT).config, keyring())
    with pytest.raises(ConfigError, match=r"http\.host and http\.public_url") as got:
        refuse_demo(facts(http=OUT).config, demo)
    assert got.value.code == "demo-keyring"


HOSTS = st.sampled_from(["127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.1.2.3", "b.example"])
URLS = st.sampled_from(
    [None, "http://127.0.0.1:1", "http://f.example", "https://f.example", "ftp://x", "https://["]
)
PATH = st.none() | st.just("a file")
HTTP = st.builds(
    HttpConfig, host=HOSTS, unix=PATH, public_url=URLS, tls_certificate=PATH, tls_key=PATH,
    behind_proxy=st.booleans(), trusted_proxies=st.sampled_from([(), ("10.0.0.0/8",)]),
)  # fmt: skip
MQTT = st.builds(
    MqttConfig, host=HOSTS, username=PATH, password_file=PATH, tls_ca=PATH, client_certificate=PATH,
    client_key=PATH,
)  # fmt: skip
MODES = st.sampled_from([None, 0o600, 0o640, 0o644, 0o700, 0o755])
FACTS = st.builds(
    lambda http, mqtt, keys, **rest: Facts(
        config=FleetConfig(data_dir="data", keys=keys, http=http, mqtt=mqtt), **rest
    ),
    http=HTTP,
    mqtt=MQTT,
    keys=st.sampled_from([KEYS, AUTHORITY]),
    now=st.just(1000.0),
    files=st.dictionaries(
        st.sampled_from(["keys.fleet", "keys.authority", "http.tls_key", "data_dir"]),
        st.builds(lambda mode, root: file(mode, of_root=root), MODES, st.booleans()),
    ),
    tls=st.none() | st.builds(TlsFacts, st.none() | st.just("x"), st.floats(allow_nan=False)),
    demo=st.booleans(),
    admins=st.integers(0, 2),
)


@given(FACTS)
def test_what_passes_has_tls_credentials_and_keys_wherever_it_leaves_the_machine(found):
    if security_gate(found):
        return
    http, mqtt = found.config.http, found.config.mqtt
    if http.unix is None and not is_loopback(http.host):
        proxied = http.behind_proxy and http.trusted_proxies
        assert (http.tls_certificate and http.tls_key) or proxied
    if http.public_url is not None:
        parts = urlsplit(http.public_url)
        assert parts.scheme == "https" or is_loopback(parts.hostname)
    if not is_loopback(mqtt.host):
        certificate = mqtt.client_certificate and mqtt.client_key
        assert mqtt.tls_ca
        assert certificate or (mqtt.username and mqtt.password_file)
    if leaving(found.config):
        assert not found.demo
        assert found.config.keys.authority
    if found.is_reached:
        assert found.admins > 0
    if found.tls is not None:
        assert found.tls.problem is None
        assert found.tls.expires > found.now
    assert all(not one.is_open(0o007) for one in found.files.get("keys.fleet", ()))


@given(FACTS)
def test_it_is_total_and_demos_are_never_waived(found):
    for violation in security_gate(found):
        assert violation.key
        assert violation.words
        assert violation.fix
    if found.demo and leaving(found.config):
        with pytest.raises(ConfigError):
            admit(security_gate(found), "a good reason")
