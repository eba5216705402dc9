"""How a device joins: whom it believes, what it sends to whom, what it makes of every answer."""

from __future__ import annotations

import json
import random
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
from bundle_samples import fixed_key
from connect_proxy import connect_proxy
from enrol_server import (
    AUTHORITY,
    DAY_MS,
    ENROL,
    KEYRING,
    MAC_KEY,
    OWNER,
    STRANGER,
    TOKEN,
    Reply,
    enrol_server,
    keyring,
    make_authority,
    now_ms,
    refusal,
)
from hypothesis import given
from hypothesis import strategies as st
from world_waiting import SECONDS

from edgepack_contract.clock import TrustedClock
from edgepack_contract.enrolment import BrokerAddress, JoinString
from edgepack_contract.errors import ConfigError, EdgepackError
from edgepack_contract.keys import PrivateKey
from edgepack_runtime.config import load_config
from edgepack_runtime.errors import (
    FleetBusyError,
    FleetRefusedError,
    FleetUnavailableError,
    FleetUntrustedError,
    StillPendingError,
)
from edgepack_runtime.membership.command import membership_words
from edgepack_runtime.membership.enrolment import (
    Waiting,
    Wish,
    first_contact,
    join_fleet,
    pause_seconds,
)
from edgepack_runtime.membership.fleet_client import FleetClient, Patience, printable
from edgepack_runtime.membership.folder import EnrolFolder, membership_files
from edgepack_runtime.storage.fsio import DurableFS

KEY = fixed_key(44)
WISH = Wish("pi-1", {"site": "oslo"})
BEHIND, AHEAD = 0, 4_070_908_800_000  # 1970 and 2099


class Time:
    """Seconds that pass only when somebody sleeps."""

    def __init__(self):
        self.now, self.told = 0.0, []

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds

    def waiting(self, seconds=3600.0):
        return Waiting(seconds, lambda: self.now, self.sleep, random.Random(1), self.told.append)


def join_it(server, *, clock=now_ms, time=None, seconds=3600.0, **changes):
    time = time or Time()
    join = replace(server.join, **changes)
    clock = TrustedClock(clock)
    waiting, patience = time.waiting(seconds), Patience(5.0, 5.0)
    return join_fleet(join, KEY, WISH, clock=clock, waiting=waiting, patience=patience)


@pytest.fixture
def server(tmp_path):
    with enrol_server(tmp_path / "tls") as server:
        yield server


def test_what_is_asked_and_what_comes_of_it(server):
    member = join_it(server)
    assert server.paths() == [KEYRING, ENROL]
    body = server.seen[1][1]
    assert (body["token"], body["labels"]) == (TOKEN, {"site": "oslo"})
    assert len(body["nonce"]) == 32
    assert (member.device, member.mac_key) == ("pi-1", MAC_KEY)
    assert server.members["pi-1"].fingerprint == KEY.public.fingerprint


def test_nobody_but_the_pinned_owners_fleet_is_sent_the_token(server):
    server.keyring = keyring(STRANGER)
    with pytest.raises(EdgepackError, match="somebody is in between") as refused:
        join_it(server)
    assert refused.value.code == "wrong-owner"
    assert server.paths() == [KEYRING]


def test_who_only_passes_the_keyring_on_is_not_sent_the_token(tmp_path):
    # the certificate is somebody else's, the keyring is the real one
    with enrol_server(tmp_path, authority=make_authority(45)) as between:
        with pytest.raises(FleetUntrustedError, match="somebody is in between"):
            join_it(between)
        assert between.paths() == [KEYRING]


def test_a_certificate_for_another_host_is_refused(tmp_path):
    with enrol_server(tmp_path, hosts=("elsewhere.example",)) as server:
        with pytest.raises(FleetUntrustedError):
            join_it(server)
        assert server.paths() == [KEYRING]


def test_without_authorities_in_the_keyring_the_systems_count(server, monkeypatch, tmp_path):
    server.keyring = keyring(authorities=[])
    with pytest.raises(FleetUntrustedError):
        join_it(server)
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert join_it(server).device == "pi-1"


def test_a_board_that_wakes_up_in_1970_joins(server):
    assert join_it(server, clock=lambda: BEHIND).device == "pi-1"


def test_a_clock_in_2099_is_named(server):
    with pytest.raises(FleetUntrustedError, match="clock") as refused:
        join_it(server, clock=lambda: AHEAD)
    # OpenSSL goes by the machine's clock, ours by the one that was given
    assert refused.value.code == "clock-or-certificate"


def test_a_pending_device_waits_and_asks_the_same(server):
    server.pending, time = 3, Time()
    assert join_it(server, time=time).device == "pi-1"
    assert server.keys == [KEY.public.fingerprint] * 4
    assert len({body["nonce"] for path, body in server.seen if path == ENROL}) == 4
    (told,) = time.told
    assert "ask Ann" in told
    assert KEY.public.fingerprint in told
    assert time.now >= 30.0


def test_waiting_ends(server):
    server.pending, time = 10_000, Time()
    with pytest.raises(StillPendingError, match="edgepack device approve pi-1"):
        join_it(server, time=time, seconds=100.0)
    assert time.now == 100.0
    assert 3 <= len(server.keys) <= 10


def test_it_asks_once_more_before_it_gives_up(server):
    server.pending, time = 1, Time()
    assert join_it(server, time=time, seconds=0.5).device == "pi-1"
    assert time.now == 0.5


def test_while_waiting_the_fleet_may_be_away(server):
    server.pending, time = 1, Time()
    away = iter([False, True, True, False])

    def sometimes(reply):
        return refusal(503, "busy", "back soon") if next(away) else reply

    server.twist[ENROL] = sometimes
    assert join_it(server, time=time).device == "pi-1"
    assert sum("back soon" in one for one in time.told) == 2


def test_one_of_many_behind_an_address_waits_for_its_turn(server):
    time, turn = Time(), iter([False, False, True])

    def crowded(reply):
        return reply if next(turn) else refusal(429, "too-many-requests", "10 a minute")

    server.twist[ENROL] = crowded
    assert join_it(server, time=time).device == "pi-1"
    assert sum("10 a minute" in one for one in time.told) == 2


def test_a_turn_that_never_comes_is_told_as_what_it_is(server):
    server.twist[ENROL] = lambda _: refusal(429, "too-many-requests", "10 a minute")
    with pytest.raises(FleetBusyError, match="10 a minute"):
        join_it(server, time=Time(), seconds=60.0)


def test_at_first_the_fleet_must_be_there(server):
    server.twist[ENROL] = lambda _: refusal(503, "busy", "back soon")
    with pytest.raises(FleetUnavailableError, match="back soon"):
        join_it(server)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"https://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(FleetUnavailableError, match="Connection refused"):
        join_it(server, url=url)


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "bad-join-token"), (409, "id-taken"), (403, "rejected"), (404, "not-found")],
)
def test_a_no_is_told_in_the_fleets_words(server, status, code):
    server.twist[ENROL] = lambda _: refusal(status, code, "no\x1b[2J, because")
    with pytest.raises(FleetRefusedError, match=r"no .2J, because") as refused:
        join_it(server)
    assert (refused.value.code, refused.value.status) == (code, status)
    assert "\x1b" not in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_a_worthless_token_is_refused_and_not_repeated(server):
    with pytest.raises(FleetRefusedError) as refused:
        join_it(server, token="epj_" + "u" * 43)
    assert refused.value.code == "bad-join-token"
    assert "u" * 10 not in str(refused.value)


def test_the_token_is_not_in_what_is_logged_of_a_join_string(server):
    assert TOKEN not in repr(server.join)


def with_certificate(**changes):
    """The reply with a certificate of ours for another name, key or time."""
    key = changes.pop("key", KEY.public)
    name, days, ago = changes.pop("name", "pi-1"), changes.pop("days", 90), changes.pop("ago", 0)
    pem = AUTHORITY.issue_client(key, name=name, now_ms=now_ms() - ago * DAY_MS, days=days).pem
    return lambda reply: reply.altered(member={"certificate": pem.decode()})


def with_member(**changes):
    return lambda reply: reply.altered(member=changes)


def with_broker(host, *, tls, **changes):
    return with_member(broker={"host": host, "port": 8883, "tls": tls}, **changes)


HOSTILE = {
    "another nonce": (lambda reply: reply.altered(nonce="0" * 32), "wrong-nonce"),
    "accepted with nothing": (lambda reply: reply.altered(gone="member"), "bad-membership"),
    "pending with something": (lambda reply: reply.altered(status="pending"), "bad-membership"),
    "unknown status": (lambda reply: reply.altered(status="maybe"), "malformed-document"),
    "unknown member": (lambda reply: reply.altered(extra=1), "malformed-document"),
    "short MAC key": (with_member(mac_key="5a" * 8), "bad-membership"),
    "MAC key with a line": (with_member(mac_key="5a" * 31 + "\na"), "bad-membership"),
    "id that is a path": (with_member(device="../x"), "bad-membership"),
    "tenant that is a filter": (with_member(tenant="#"), "bad-membership"),
    "certificate of another key": (
        with_certificate(key=STRANGER.public),
        "wrong-certificate",
    ),
    "certificate of another name": (with_certificate(name="pi-2"), "wrong-certificate"),
    "certificate that ended": (with_certificate(ago=100), "expired-certificate"),
    "certificate that is none": (with_member(certificate="junk"), "bad-certificate"),
    "broker in the clear": (with_broker("10.0.0.1", tls=False), "insecure-broker"),
    "broker without certificate": (
        with_broker("10.0.0.1", tls=True, certificate=None),
        "insecure-broker",
    ),
    "broker that is TOML": (with_broker('x"\nport = 1', tls=True), "bad-broker"),
    "older keyring": (
        with_member(keyring=keyring(version=1).decode()),
        "old-keyring",
    ),
    "another owner's keyring": (
        with_member(keyring=keyring(STRANGER, version=9).decode()),
        "unknown-key",
    ),
    "no JSON": (lambda reply: replace(reply, body=b"<html>"), "malformed-document"),
    "deep JSON": (lambda reply: replace(reply, body=b"[" * 5000), "too-deep"),
    "a megabyte too much": (lambda reply: replace(reply, body=b" " * 2**21), "too-large"),
    "a redirect": (
        lambda _: Reply(307, b"", {"Location": "https://127.0.0.1:1/"}),
        "bad-redirect",
    ),
    "half of it": (lambda reply: replace(reply, length=10**5), "fleet-unavailable"),
    "words without end": (
        lambda reply: refusal(403, "x" * 100, "y" * 10_000),
        "fleet-refused",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_refused_by_its_own_code(server, name):
    server.twist[ENROL], code = HOSTILE[name]
    with pytest.raises(EdgepackError) as refused:
        join_it(server)
    assert refused.value.code == code
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(200, b"<html>log in to the hotel's network</html>"), "not-a-fleet"),
        (Reply(200, b""), "not-a-fleet"),
        (Reply(200, b"x" * 300_000), "too-large"),
        (Reply(302, b"", {"Location": "http://login.example/"}), "bad-redirect"),
        (Reply(404, b"nothing here"), "fleet-refused"),
        (Reply(500, b"{}"), "fleet-busy"),
    ],
)
def test_what_is_not_a_fleet_is_sent_nothing(server, reply, code):
    server.twist[KEYRING] = lambda _: reply
    with pytest.raises(EdgepackError) as refused:
        join_it(server)
    assert refused.value.code == code
    assert server.paths() == [KEYRING]


def cut_after(url):
    """What asking somebody who never ends comes to; fails when that takes until he gives up."""
    join = JoinString(url, OWNER.public.fingerprint, TOKEN)
    patience = Patience(stall_seconds=SECONDS * 60, total_seconds=0.2)
    contact = partial(first_contact, join, clock=TrustedClock(now_ms), patience=patience)
    pool = ThreadPoolExecutor()
    asked = pool.submit(contact)
    pool.shutdown(wait=False)
    return asked.exception(SECONDS)


def test_an_answer_that_never_ends_is_cut(server):
    server.twist[KEYRING] = lambda reply: replace(reply, length=10**5, hang=True)
    error = cut_after(server.url)
    assert isinstance(error, FleetUnavailableError)
    assert error.code == "fleet-slow"


def test_a_handshake_that_never_ends_is_cut():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = cut_after(f"https://127.0.0.1:{silent.getsockname()[1]}")
    assert isinstance(error, FleetUnavailableError)
    assert error.code == "fleet-slow"


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A fleet on another machine, behind the proxy of the environment."""
    seen = []
    with (
        enrol_server(tmp_path / "far", hosts=("fleet.test",)) as server,
        connect_proxy(server.port, seen) as address,
    ):
        monkeypatch.setenv("HTTPS_PROXY", address)
        server.asked_proxy = seen
        yield server


def test_a_proxy_of_the_environment_is_used(far):
    member = join_it(far, url="https://fleet.test:8443")
    assert member.device == "pi-1"
    assert len(far.asked_proxy) == 2
    assert far.asked_proxy[0].startswith("CONNECT fleet.test:8443 HTTP/1.")
    assert "Proxy-Authorization: Basic YW5uOnNlY3JldA==" in far.asked_proxy[0]


def test_no_proxy_is_asked_for_this_machine(far, server):
    assert join_it(server).device == "pi-1"
    assert far.asked_proxy == []


def test_a_demo_is_joined_on_this_machine_only(far, server):
    server.keyring = far.keyring = keyring(demo=True)
    assert join_it(server).device == "pi-1"
    with pytest.raises(EdgepackError) as refused:
        join_it(far, url="https://fleet.test")
    assert refused.value.code == "demo-keyring"
    assert far.paths() == [KEYRING]


@pytest.mark.parametrize("address", ["https://proxy.example:1", "socks5://x:1", "http://x:bad"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch, server, address):
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        join_it(server, url="https://fleet.test")


@pytest.mark.parametrize(
    "url", ["http://fleet.test", "ftp://127.0.0.1", "https://", "https://x/path", "https://x:0x1"]
)
def test_a_fleet_has_a_proper_address(url, server):
    with pytest.raises(ConfigError):
        FleetClient(url, tls=None)


@given(st.text())
def test_somebody_elses_words_stay_on_their_line(words):
    assert printable(words).isprintable()
    assert len(printable(words)) <= 500


@given(st.floats(0.1, 3600.0), st.integers(0, 10_000), st.integers(0, 99))
def test_pauses_grow_but_not_for_ever(asked, attempt, seed):
    pause = pause_seconds(asked, attempt, random.Random(seed))
    assert asked <= pause <= max(asked, 60.0) * 1.25


def test_the_files_are_what_the_daemon_reads(server, tmp_path):
    member = join_it(server)
    folder = EnrolFolder(DurableFS(), tmp_path / "pi-1")
    with folder.held(again=False):
        key = folder.key()
        member = server.member("pi-1", key.public)
        folder.keep(membership_files(member, server.join, port=8001))
    config = load_config(folder.config, {})
    assert (config.device, config.serve.port) == ("pi-1", 8001)
    assert (config.mqtt.host, config.mqtt.port, config.mqtt.tls) == ("broker.example", 8883, True)
    assert config.fleet.url == server.url
    words = "\n".join(membership_words(config, None))
    assert key.public.fingerprint in words
    assert OWNER.public.fingerprint in words
    assert "broker.example:8883 with TLS" in words
    home = tmp_path / "pi-1"
    assert sorted(path.name for path in home.iterdir()) == [
        "device.key", "device.pem", "device.toml", "keyring.json", "mac.key",
    ]  # fmt: skip
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}


def test_on_loopback_there_need_be_no_certificate(server, tmp_path):
    server.broker = BrokerAddress(host="127.0.0.1", port=1883, tls=False)
    server.twist[ENROL] = lambda reply: reply.altered(
        member={"certificate": None, "certificate_expires": None}
    )
    member = join_it(server)
    files = membership_files(member, server.join, port=0)
    assert sorted(files) == ["device.toml", "keyring.json", "mac.key"]
    assert b"certificate" not in files["device.toml"]


def test_a_name_that_would_break_the_configuration_is_refused(server):
    member = server.member("pi-1", PrivateKey.generate().public)
    files = membership_files(member, replace(server.join, url='https://x"]\n'), port=0)
    assert json.dumps('https://x"]\n').encode() in files["device.toml"]
    with pytest.raises(ConfigError):
        membership_files(member, replace(server.join, url="https://\U0001f600"), port=0)
