"""The security gate: one sample for each row of its table, and what an empty answer promises."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import logging
import os
import signal
from types import MappingProxyType
from urllib.parse import urlsplit

import pytest
from bundle_samples import PUBLISHER, fixed_key
from certificate_files import make_tls, make_token
from hypothesis import given
from hypothesis import strategies as st
from world_device import make_home
from world_process import ask, run_to_end, running

from edgepack_contract import gate_facts
from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import FileFacts, TlsFacts, Violation, Waiver, admit
from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.keys import read_private_key
from edgepack_runtime import admission
from edgepack_runtime.admission import bundle_facts, device_facts, reminding, warn_of_expiry
from edgepack_runtime.config import (
    FleetConfig,
    MqttConfig,
    OpsConfig,
    ServeConfig,
    load_config,
)
from edgepack_runtime.security import RULES, Facts, TokenFacts, security_gate

NOW = 1_800_000_000.0
SERVE = ServeConfig(host="0.0.0.0", tls_certificate="/c", tls_key="/k", token_file="/t")
LOCAL = ServeConfig()
PRIVATE = MappingProxyType(
    {
        key: FileFacts(f"/{key}", 0o600)
        for key in (
            "identity.key",
            "identity.mac_key",
            "serve.tls_key",
            "serve.token_file",
            "download.registries",
        )
    }
    | {"state_dir": FileFacts("/state", 0o755)}
)
SECURE = Facts(
    serve=SERVE, now=NOW, ops=OpsConfig(host="0.0.0.0"),
    mqtt=MqttConfig(host="broker.example", tls=True),
    fleet=FleetConfig(url="https://fleet.example"), certificate="/device.pem",
    files=PRIVATE, tls=TlsFacts(expires=NOW + 1), token=TokenFacts(64),
)  # fmt: skip
LOOPBACK = Facts(serve=LOCAL, now=NOW, mqtt=MqttConfig(host="127.0.0.1"))


def serve(**changes):
    fields = {"host": "0.0.0.0", "tls_certificate": "/c", "tls_key": "/k", "token_file": "/t"}
    return ServeConfig(**(fields | changes))


def mode(key, bits, *, of_root=False):
    return {"files": dict(PRIVATE) | {key: FileFacts(f"/{key}", bits, of_root=of_root)}}


ROWS = [
    ({"serve": serve(tls_certificate=None, tls_key=None), "tls": None},
     "serve.tls_certificate", "in the clear", "set serve.tls_certificate and serve.tls_key"),
    ({"serve": serve(token_file=None), "token": None},
     "serve.token_file", "could ask for predictions", "openssl rand -hex 32 > FILE"),
    ({"serve": serve(tls_key=None), "tls": None},
     "serve.tls_key", "without its private key", "set serve.tls_key"),
    ({"serve": ServeConfig(tls_key="/k"), "tls": None, "token": None},
     "serve.tls_certificate", "without its certificate", "set serve.tls_certificate"),
    ({"tls": TlsFacts(problem="/c is not PEM")},
     "serve.tls_certificate", "/c is not PEM", "give a PEM certificate"),
    (mode("serve.tls_key", 0o640),
     "serve.tls_key", "(mode 0640)", "chmod 600 /serve.tls_key"),
    ({"token": TokenFacts(problem="cannot read the token /t")},
     "serve.token_file", "cannot read the token /t", "openssl rand -hex 32 > /t"),
    ({"token": TokenFacts(31)},
     "serve.token_file", "31 characters", "openssl rand -hex 32 > /t && chmod 600 /t"),
    (mode("serve.token_file", 0o604),
     "serve.token_file", "(mode 0604)", "chmod 600 /serve.token_file"),
    (mode("identity.key", 0o644), "identity.key", "pose as", "chmod 600 /identity.key"),
    (mode("identity.mac_key", 0o660),
     "identity.mac_key", "forge its reports", "chmod 600 /identity.mac_key"),
    (mode("download.registries", 0o644),
     "download.registries", "pull in this device's name", "chmod 600 /download.registries"),
    (mode("state_dir", 0o775), "state_dir", "put models there", "chmod go-w /state_dir"),
    ({"mqtt": MqttConfig(host="broker.example")},
     "mqtt.tls", "broker.example is another machine", "set mqtt.tls = true"),
    ({"certificate": None},
     "identity.certificate", "cannot know this device", "edgepack enrol FOLDER"),
    ({"fleet": FleetConfig(url="http://fleet.example")},
     "fleet.url", "neither https", "https address"),
    ({"signed": False, "by_flags": True},
     "--keyring", "nobody vouches", "give --keyring and --owner, or --host 127.0.0.1"),
    ({"demo": True}, "identity.keyring",
     "serve.host and ops.host and mqtt.host and fleet.url reaches", "edgepack keys init"),
]  # fmt: skip


def violations(changes, facts=SECURE):
    return security_gate(dataclasses.replace(facts, **changes))


@pytest.mark.parametrize(("changes", "key", "words", "fix"), ROWS, ids=[row[2] for row in ROWS])
def test_each_row_alone(changes, key, words, fix):
    (found,) = violations(changes)
    assert found.key == key
    assert words in found.words
    assert fix in found.fix
    assert "{" not in str(found)


def test_every_rule_has_a_row():
    broken = [
        next(rule for rule in RULES if rule.broken(dataclasses.replace(SECURE, **changes)))
        for changes, *_ in ROWS
    ]
    assert broken == list(RULES)


@pytest.mark.parametrize("facts", [SECURE, LOOPBACK], ids=["secure", "loopback"])
def test_nothing_to_say(facts):
    assert security_gate(facts) == []
    assert admit(security_gate(facts), None) is admit(security_gate(facts), "a reason") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"demo": True},
        {"signed": False},
        {"serve": ServeConfig(host="::1")},
        {"serve": ServeConfig(host="localhost")},
        {"fleet": FleetConfig(url="http://127.0.0.1:8080")},
        {"ops": OpsConfig(host="0.0.0.0")},
        {"files": {"identity.key": FileFacts("/not-there")}},
        mode("serve.tls_key", 0o640, of_root=True),
        mode("serve.token_file", 0o440, of_root=True),
    ],
    ids=repr,
)
def test_what_loopback_may(changes):
    assert violations(changes, LOOPBACK) == []


def test_explicit_settings_count_on_loopback_too():
    changes = {
        "serve": serve(host="127.0.0.1"), "token": TokenFacts(5), "tls": TlsFacts(problem="bad"),
    }  # fmt: skip
    assert [one.key for one in violations(changes, LOOPBACK)] == [
        "serve.tls_certificate", "serve.token_file",
    ]  # fmt: skip


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "fleet.example", "", "127.0.0.1 "])
@pytest.mark.parametrize("where", ["serve", "ops", "mqtt", "fleet"])
def test_demo_keys_stay_on_loopback(host, where):
    beyond = {
        "serve": ServeConfig(host=host),
        "ops": OpsConfig(host=host),
        "mqtt": MqttConfig(host=host),
        "fleet": FleetConfig(url=f"https://{host}/"),
    }
    facts = dataclasses.replace(LOOPBACK, demo=True, **{where: beyond[where]})
    assert "identity.keyring" in [one.key for one in security_gate(facts)]
    with pytest.raises(ConfigError, match="demo"):
        admit(security_gate(facts), "just for an hour")


HOSTS = {
    "127.0.0.1": True, "127.9.9.9": True, "::1": True, "localhost": True, "0.0.0.0": False,
    "::": False, "192.0.2.1": False, "fleet.example": False, "broker.example": False, "": False,
    "localhost.evil.example": False,
}  # fmt: skip
URLS = [f"{scheme}://{host}" for scheme in ("http", "https", "ftp", "") for host in HOSTS]
hosts = st.sampled_from(sorted(HOSTS))
maybe = st.sampled_from([None, "/file"])
bits = st.one_of(st.none(), st.integers(0, 0o777))
files = st.builds(FileFacts, st.text(max_size=5), bits, of_root=st.booleans())
urls = st.one_of(st.none(), st.sampled_from(URLS), st.text(max_size=12))
everything = st.builds(
    Facts,
    serve=st.builds(
        ServeConfig, host=hosts, tls_certificate=maybe, tls_key=maybe, token_file=maybe
    ),
    now=st.just(NOW),
    ops=st.builds(OpsConfig, host=st.one_of(st.none(), hosts)),
    mqtt=st.one_of(st.none(), st.builds(MqttConfig, host=hosts, tls=st.booleans())),
    fleet=st.builds(FleetConfig, url=urls),
    certificate=maybe,
    files=st.dictionaries(st.sampled_from([rule.key for rule in RULES]), files, max_size=3),
    tls=st.one_of(
        st.none(), st.builds(TlsFacts, st.sampled_from([None, "x"]), st.floats(allow_nan=True))
    ),
    token=st.one_of(
        st.none(), st.builds(TokenFacts, st.integers(0, 99), st.sampled_from([None, "x"]))
    ),
    demo=st.booleans(),
    signed=st.booleans(),
    by_flags=st.booleans(),
)


@given(everything)
def test_it_is_total_and_its_words_are_whole(facts):
    for violation in security_gate(facts):
        assert violation.key
        assert violation.words
        assert violation.fix


def near_secure():
    """Mostly secure, so that an empty answer is common: what is drawn replaces a few fields."""
    fields = ("serve", "ops", "mqtt", "fleet", "certificate", "tls", "token", "demo", "signed")
    return st.builds(
        lambda drawn, names: dataclasses.replace(
            SECURE, **{name: getattr(drawn, name) for name in names}
        ),
        everything,
        st.sets(st.sampled_from(fields), max_size=3),
    )


def promised(facts):
    """What a silent gate promises, said in other words than the gate's."""
    if not HOSTS[facts.serve.host]:
        assert facts.serve.tls_certificate
        assert facts.serve.tls_key
        assert facts.serve.token_file
        assert facts.token is None or facts.token.characters >= 32
        assert facts.signed
        assert not facts.demo
    if facts.mqtt is not None and not HOSTS[facts.mqtt.host]:
        assert facts.mqtt.tls
        assert facts.certificate
        assert not facts.demo
    if facts.fleet.url is not None:
        url = urlsplit(facts.fleet.url)
        assert url.scheme == "https" or HOSTS.get(url.hostname or "", False)
    if facts.ops.host is not None and not HOSTS[facts.ops.host]:
        assert not facts.demo


@given(st.one_of(near_secure(), everything))
def test_a_silent_gate_promises_what_is_off_loopback(facts):
    if not security_gate(facts):
        promised(facts)


def test_a_reason_waives_what_can_be_waived():
    facts = dataclasses.replace(LOOPBACK, serve=ServeConfig(host="0.0.0.0"))
    waiver = admit(security_gate(facts), "  no network there  ")
    assert waiver is not None
    assert waiver.reason == "no network there"
    assert waiver.settings == ["serve.tls_certificate", "serve.token_file"]


@pytest.mark.parametrize("reason", [None, "", "   "])
def test_no_reason_waives_nothing(reason):
    facts = dataclasses.replace(LOOPBACK, serve=ServeConfig(host="0.0.0.0"))
    with pytest.raises(ConfigError, match="refusing to start, 2 settings are insecure") as raised:
        admit(security_gate(facts), reason)
    assert raised.value.code == "insecure"
    _, *lines = str(raised.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "serve.tls_certificate", "serve.token_file",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes", [row[0] for row in ROWS if not violations(row[0])[0].waivable], ids=str
)
def test_what_cannot_work_or_must_not_be_is_never_waived(changes):
    with pytest.raises(ConfigError, match="1 setting is insecure"):
        admit(security_gate(dataclasses.replace(SECURE, **changes)), "a good reason")


def test_a_waiver_is_said_again_and_again(caplog, monkeypatch):
    waiver = Waiver("lab", (Violation("serve.host", "words", "fix", waivable=True),))

    async def run():
        heard = asyncio.Event()
        handler = logging.Handler()
        handler.emit = lambda _record: len(caplog.records) >= 3 and heard.set()
        logger = logging.getLogger(gate_facts.__name__)
        logger.addHandler(handler)
        try:
            with reminding(waiver), reminding(None):
                async with asyncio.timeout(60):
                    await heard.wait()
        finally:
            logger.removeHandler(handler)

    monkeypatch.setattr(admission, "REMIND_SECONDS", 0.0)
    asyncio.run(run())
    assert {record.event for record in caplog.records} == {"insecure"}
    assert caplog.messages[0] == "insecure (lab): serve.host: words; fix"


@pytest.fixture
def home(tmp_path):
    """A device that is enrolled on loopback."""
    make_home(tmp_path / "pi", "pi-1", 1883)
    return tmp_path / "pi"


def configured(home, **environ):
    return load_config(
        home / "device.toml", {f"EDGEPACK_{k.upper()}": v for k, v in environ.items()}
    )


def test_the_facts_of_a_device_that_is_as_enrolment_left_it(home):
    facts = device_facts(configured(home))
    assert security_gate(facts) == []
    assert {key: file.mode for key, file in facts.files.items()} == {
        "identity.key": 0o600, "identity.mac_key": 0o600, "state_dir": None,
    }  # fmt: skip
    assert (facts.tls, facts.token, facts.demo, facts.signed) == (None, None, False, True)


def test_of_the_password_files_the_one_that_others_can_read_is_named(home):
    lines = ""
    for name, bits in (("one", 0o600), ("two", 0o644), ("three", 0o600)):
        (home / name).write_text("word")
        (home / name).chmod(bits)
        lines += f'[[download.registries]]\nhost = "{name}.example"\nuser = "pi"\n'
        lines += f'password_file = "{name}"\n'
    with (home / "device.toml").open("a") as config:
        config.write(lines)
    (found,) = security_gate(device_facts(configured(home)))
    assert (found.key, found.fix) == ("download.registries", f"run: chmod 600 {home / 'two'}")


def test_the_facts_of_files(home, tmp_path):
    tls = make_tls(tmp_path / "tls")
    make_token(home / "token")
    (home / "token").chmod(0o644)
    (home / "mac.key").chmod(0o604)
    (home / "state").mkdir()
    (home / "state").chmod(0o777)
    config = configured(
        home, serve_tls_certificate=str(tls.certificate), serve_tls_key=str(tls.key),
        serve_token_file="token",
    )  # fmt: skip
    facts = device_facts(config)
    assert facts.token == TokenFacts(64)
    assert facts.tls is not None
    assert facts.now < facts.tls.expires < facts.now + 31 * 86_400
    assert facts.files["serve.token_file"].of_root is (os.getuid() == 0)
    assert {one.key for one in security_gate(facts)} == {
        "serve.token_file", "identity.mac_key", "state_dir",
    }  # fmt: skip


def encrypt(path):
    path.write_bytes(read_private_key(path).pem(b"passphrase"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda tls, other: tls.certificate.unlink(), "No such file"),
        (lambda tls, other: tls.key.unlink(), "No such file"),
        (lambda tls, other: tls.certificate.write_text("nonsense"), "not PEM"),
        (lambda tls, other: tls.certificate.write_bytes(b""), "not PEM"),
        (lambda tls, other: tls.key.write_bytes(b"\x00" * 100), "not PEM"),
        (lambda tls, other: tls.key.write_bytes(other.key.read_bytes()), "key values mismatch"),
        (lambda tls, other: encrypt(tls.key), "with a passphrase"),
        (lambda tls, other: (tls.key.unlink(), tls.key.mkdir()), "directory"),
        (lambda tls, other: tls.key.write_bytes(tls.key.read_bytes() * 999), "larger than 65536"),
    ],
)
def test_tls_files_that_cannot_be_used(tmp_path, harm, words):
    tls, other = make_tls(tmp_path / "tls"), make_tls(tmp_path / "other")
    harm(tls, other)
    listen = ServeConfig(tls_certificate=str(tls.certificate), tls_key=str(tls.key))
    facts = bundle_facts(listen, OpsConfig(), None)
    (found,) = [one for one in security_gate(facts) if not one.waivable]
    assert found.key == "--tls-certificate"
    assert words in found.words


def test_an_expired_certificate_is_told_and_ends_nothing(tmp_path, caplog):
    """A clock that is ahead makes every certificate look like that; serving goes on."""
    tls = make_tls(tmp_path / "tls", ended_days=3)
    listen = ServeConfig(tls_certificate=str(tls.certificate), tls_key=str(tls.key))
    facts = bundle_facts(listen, OpsConfig(), None)
    assert security_gate(facts) == []
    warn_of_expiry(facts)
    assert "expired on 20" in caplog.text
    caplog.clear()
    warn_of_expiry(dataclasses.replace(facts, now=0.0))
    assert not caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"), (b"", "one word"), (b"\n", "one word"),
        (b"two words", "one word"), (b"a" * 100_000, "one word"), (b"\xff" * 40, "one word"),
        ("é".encode() * 40, "one word"), (b"short", "5 characters"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_used(tmp_path, content, words):
    if content is not None:
        (tmp_path / "token").touch(mode=0o600)
        (tmp_path / "token").write_bytes(content)
    listen = ServeConfig(token_file=str(tmp_path / "token"))
    (found,) = security_gate(bundle_facts(listen, OpsConfig(), None))
    assert found.key == "--token-file"
    assert words in found.words


def keyring_bytes(*, demo):
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    return make_keyring(
        fixed_key(30), version=1, epoch=1, publishers=[publisher], fleets=[fixed_key(31).public],
        demo=demo,
    )  # fmt: skip


def test_a_demo_keyring_is_known_from_its_file(home):
    (home / "keyring.json").write_bytes(keyring_bytes(demo=True))
    config = configured(home)
    assert device_facts(config).demo
    assert security_gate(device_facts(config)) == []
    (home / "keyring.json").write_bytes(b"nonsense")
    assert not device_facts(config).demo


PORTS = {"EDGEPACK_SERVE_PORT": "0"}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SERVE_HOST": "0.0.0.0"}, ["serve.tls_certificate: ", "serve.token_file: "]),
        ({"SERVE_HOST": "::"}, ["predictions on :: would"]),
        ({"MQTT_HOST": "192.0.2.1"}, ["mqtt.tls: ", "identity.certificate: "]),
        ({"FLEET_URL": "http://192.0.2.1"}, ["fleet.url: http://192.0.2.1 is neither"]),
        ({"SERVE_TLS_KEY": "x"}, ["serve.tls_certificate: a private key is of no use"]),
        ({"SERVE_TOKEN_FILE": "none"}, ["serve.token_file: cannot read the token"]),
        ({"ALLOW_INSECURE": " ", "SERVE_HOST": "0.0.0.0"}, ["2 settings are insecure"]),
    ],
    ids=str,
)
def test_an_insecure_daemon_ends_with_78_and_says_everything(home, environ, said):
    environ = PORTS | {f"EDGEPACK_{name}": value for name, value in environ.items()}
    ended = run_to_end("edgepack_runtime", "--config", home / "device.toml", **environ)
    assert ended.returncode == 78, ended.stderr
    assert "Traceback" not in ended.stderr
    for words in said:
        assert words in ended.stderr
    assert not (home / "state").exists()


@pytest.mark.parametrize("variable", ["SERVE_HOST", "OPS_HOST", "MQTT_HOST"])
def test_a_demo_daemon_off_loopback_ends_with_78_whatever_the_reason(home, variable):
    (home / "keyring.json").write_bytes(keyring_bytes(demo=True))
    environ = PORTS | {f"EDGEPACK_{variable}": "0.0.0.0", "EDGEPACK_ALLOW_INSECURE": "a good one"}
    ended = run_to_end("edgepack_runtime", "--config", home / "device.toml", **environ)
    assert ended.returncode == 78, ended.stderr
    assert "the keyring is a demo's, whose keys are no secret" in ended.stderr


def test_secrets_that_others_read_end_it_with_78(home):
    (home / "mac.key").chmod(0o644)
    ended = run_to_end("edgepack_runtime", "--config", home / "device.toml", **PORTS)
    assert ended.returncode == 78, ended.stderr
    assert f"run: chmod 600 {home / 'mac.key'}" in ended.stderr


def test_a_daemon_serves_off_loopback_by_tls_and_tells_its_health_in_the_clear(home, tmp_path):
    tls, token = make_tls(tmp_path / "tls"), make_token(home / "token")
    environ = {
        "SERVE_HOST": "0.0.0.0", "SERVE_PORT": "0", "SERVE_TLS_CERTIFICATE": str(tls.certificate),
        "SERVE_TLS_KEY": str(tls.key), "SERVE_TOKEN_FILE": "token", "OPS_HOST": "0.0.0.0",
        "OPS_PORT": "0", "MQTT_PORT": "9",
    }  # fmt: skip
    environ = {f"EDGEPACK_{name}": value for name, value in environ.items()}
    log, config = tmp_path / "log", home / "device.toml"
    with running(log, "edgepack_runtime", "--config", config, **environ) as process:
        process.wait_said('"event": "serving"')
        told = next(line for line in process.said.splitlines() if '"serving"' in line)
        where = json.loads(told)
        assert ask(where["ops_port"], "GET", "/health").json["status"] == "no models"
        connection = http.client.HTTPSConnection(
            "127.0.0.1", where["port"], timeout=60, context=tls.trusting()
        )
        with contextlib.closing(connection):
            connection.request("GET", "/v2", headers={"authorization": f"Bearer {token}"})
            assert connection.getresponse().read()
            connection.request("GET", "/v2")
            assert connection.getresponse().status == 401
        # the Unix socket has its mode instead of a token
        assert ask(home / "serve.sock", "GET", "/v2").status == 200
        process.process.send_signal(signal.SIGHUP)
        process.wait_said('"event": "reloaded"')
        assert process.end(signal.SIGTERM) == 0
