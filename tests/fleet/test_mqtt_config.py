"""What Mosquitto is told: derived from the topics, kept when it is written again."""

from __future__ import annotations

import stat
from itertools import pairwise, product
from pathlib import PurePosixPath

import pytest
from cryptography import x509
from fleet_devices import NOW

from edgepack_contract.certificates import Authority, certificate_key, common_name, read_certificate
from edgepack_contract.errors import ConfigError
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import is_id
from edgepack_contract.topics import (
    FLEET_NODE,
    Kind,
    device_filters,
    fleet_filters,
    fleet_state_topic,
    keyring_topic,
)
from edgepack_fleet.broker_files import BrokerRequest, Trusted, write_broker_files
from edgepack_fleet.mqtt_config import (
    MAX_PACKET_BYTES,
    BrokerPlan,
    access_text,
    config_text,
    device_reads,
    device_writes,
    fleet_writes,
)
from edgepack_fleet.revoked_list import listed_issuers, merge_lists

DAY_MS = 86_400_000
AUTHORITY = Authority.create(PrivateKey.generate(), name="edgepack test", now_ms=NOW)
OTHER = Authority.create(PrivateKey.generate(), name="edgepack test", now_ms=NOW)
SECRET = {"server.key", "fleet-client.key"}
PUBLIC = {
    "edgepack.conf", "edgepack.acl", "ca.pem", "server.pem", "crl.pem", "fleet-client.pem",
}  # fmt: skip


def matches(pattern: str, topic: str) -> bool:
    """Whether a filter without ``#`` covers a topic."""
    levels = list(zip(pattern.split("/"), topic.split("/"), strict=False))
    same_length = pattern.count("/") == topic.count("/")
    return same_length and all(one in ("+", level) for one, level in levels)


def test_a_device_may_receive_exactly_what_it_subscribes_to():
    told = [one.replace("%u", "pi-1") for one in device_reads("default")]
    assert sorted(told) == sorted(device_filters("default", "pi-1", requests=True))


def test_the_service_hears_exactly_what_devices_may_say():
    told = [one.replace("%u", "+") for one in device_writes("default")]
    answers = "edgepack/v1/default/+/response/+"
    assert sorted(told) == sorted([*fleet_filters("default"), answers])


def kinds(topics, device):
    levels = [topic.split("/") for topic in topics]
    return [one[4] for one in levels if one[3] == device]


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_goes_one_way(kind):
    """But the service clears what a device left retained, and is no client."""
    by_device = kind in kinds(device_writes("default"), "%u")
    to_device = kind in kinds(device_reads("default"), "%u")
    assert by_device != to_device
    cleared = kind in (Kind.STATE, Kind.BIRTH, Kind.REPORTED)
    asked = kind is Kind.REQUEST
    told = (to_device or cleared) and not asked
    assert (kind in kinds(fleet_writes("default"), "+")) == told


def test_the_service_may_say_what_it_says_of_itself():
    for topic in (fleet_state_topic("default"), keyring_topic("default")):
        assert topic in fleet_writes("default")
        assert not any(
            matches(one.replace("%u", "pi-1"), topic) for one in device_writes("default")
        )


def test_no_pattern_of_a_device_covers_a_topic_of_another():
    for one, other in product(device_writes("t") + device_reads("t"), repeat=2):
        if "%u" in one and "%u" in other:
            assert not matches(one.replace("%u", "pi-1"), other.replace("%u", "pi-2"))


def test_the_name_of_the_service_is_no_possible_device():
    assert not is_id(FLEET_NODE)
    assert access_text("default").count(f"user {FLEET_NODE}\n") == 1


def test_no_rule_has_a_wildcard_for_whole_subtrees():
    assert "#" not in "".join(
        line for line in access_text("default").splitlines() if not line.startswith("#")
    )


def settings(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = dict(line.split(" ", 1) for line in lines)
    assert len(found) == len(lines)
    return found


def test_the_configuration_leaves_no_door_open():
    found = settings(config_text(BrokerPlan("default", 8883, PurePosixPath("/etc/m"))))
    assert (
        found.items()
        >= {
            "listener": "8883",
            "cafile": "/etc/m/ca.pem",
            "certfile": "/etc/m/server.pem",
            "keyfile": "/etc/m/server.key",
            "crlfile": "/etc/m/crl.pem",
            "acl_file": "/etc/m/edgepack.acl",
            "tls_version": "tlsv1.2",
            "require_certificate": "true",
            "use_identity_as_username": "true",
            "use_username_as_clientid": "true",
            "allow_anonymous": "false",
            "check_retain_source": "true",
        }.items()
    )


def test_the_largest_message_and_the_largest_keyring_fit():
    assert max(LIMITS.message_bytes, LIMITS.keyring_bytes) + 300 < MAX_PACKET_BYTES


def test_every_setting_has_its_reason():
    lines = config_text(BrokerPlan("default", 8883, PurePosixPath("/m"))).splitlines()
    for before, line in pairwise(lines):
        if line and not line.startswith("#"):
            assert before.startswith("# ")


class Writing:
    def __init__(self, folder):
        self.out = folder / "out"
        self.request = {"tenant": "default", "hosts": ["broker.example", "10.0.0.1"], "port": 8883}

    def write(self, *, now_ms=NOW, authority=AUTHORITY, revoked=(), **changes):
        request = BrokerRequest(
            **{**self.request, **changes}, out=self.out, on_broker=PurePosixPath("/etc/m")
        )
        fresh = authority.revocation_list(revoked, now_ms=now_ms)
        trusted = Trusted(authority, [authority.pem], fresh)
        return dict(write_broker_files(request, trusted, now_ms=now_ms))

    def certificate(self, name):
        return read_certificate((self.out / name).read_bytes())

    def bytes(self):
        return {path.name: path.read_bytes() for path in self.out.iterdir()}


@pytest.fixture
def writing(tmp_path):
    return Writing(tmp_path)


def test_what_is_written_and_who_can_read_it(writing):
    writing.write()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in writing.out.iterdir()}
    assert modes == dict.fromkeys(PUBLIC, 0o644) | dict.fromkeys(SECRET, 0o600)


def test_the_certificates_are_for_the_hosts_and_for_the_service(writing):
    writing.write()
    server, client = writing.certificate("server.pem"), writing.certificate("fleet-client.pem")
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert common_name(client) == FLEET_NODE
    for stem, certificate in (("server", server), ("fleet-client", client)):
        key = read_private_key(writing.out / f"{stem}.key")
        assert certificate_key(certificate).fingerprint == key.public.fingerprint


def test_written_again_it_stays_as_it_is(writing):
    writing.write()
    before = writing.bytes()
    became = writing.write(now_ms=NOW + DAY_MS, revoked=())
    after = writing.bytes()
    assert {name for name in before if before[name] != after[name]} <= {"crl.pem"}
    assert became["server.key"] == became["fleet-client.key"] == "kept"


@pytest.mark.parametrize(
    ("changes", "issued"),
    [
        ({"now_ms": NOW + 500 * DAY_MS}, set()),
        ({"now_ms": NOW + 600 * DAY_MS}, {"server.pem", "fleet-client.pem"}),
        ({"now_ms": NOW + 2000 * DAY_MS}, {"server.pem", "fleet-client.pem"}),
        ({"hosts": ["other.example"]}, {"server.pem"}),
        ({"hosts": ["10.0.0.1", "broker.example"]}, set()),
        ({"authority": OTHER}, {"server.pem", "fleet-client.pem"}),
        ({"renew": True}, {"server.pem", "fleet-client.pem"}),
    ],
)
def test_certificates_are_issued_again_when_needed_and_keys_stay(writing, changes, issued):
    writing.write()
    before = writing.bytes()
    writing.write(**changes)
    after = writing.bytes()
    certificates = ("server.pem", "fleet-client.pem")
    assert {name for name in certificates if before[name] != after[name]} == issued
    assert all(before[name] == after[name] for name in SECRET)


def test_a_key_that_only_the_broker_can_read_is_not_read(writing):
    """Once installed it belongs to the broker's user."""
    writing.write()
    key = writing.out / "server.key"
    key.write_text("what a reader would refuse")
    before = writing.certificate("server.pem")
    writing.write(renew=True)
    renewed = writing.certificate("server.pem")
    assert renewed.serial_number != before.serial_number
    assert certificate_key(renewed).fingerprint == certificate_key(before).fingerprint


def test_a_lost_certificate_or_key_is_made_again(writing):
    writing.write()
    (writing.out / "server.pem").unlink()
    (writing.out / "fleet-client.key").unlink()
    before = writing.bytes()
    became = writing.write()
    assert (writing.out / "server.key").read_bytes() == before["server.key"]
    assert became["fleet-client.key"] == "made"
    for stem in ("server", "fleet-client"):
        certificate = writing.certificate(f"{stem}.pem")
        key = read_private_key(writing.out / f"{stem}.key")
        assert certificate_key(certificate).fingerprint == key.public.fingerprint


def test_a_certificate_of_ones_own_is_taken_as_it_is(writing, tmp_path):
    for name, content in (("own.pem", b"certificate"), ("own.key", b"key")):
        (tmp_path / name).write_bytes(content)
    writing.write(own=(tmp_path / "own.pem", tmp_path / "own.key"))
    found = writing.bytes()
    assert (found["server.pem"], found["server.key"]) == (b"certificate", b"key")
    assert stat.S_IMODE((writing.out / "server.key").stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_is_named(writing):
    writing.out.write_text("a file")
    with pytest.raises(ConfigError, match=str(writing.out)):
        writing.write()


def listed(pem: bytes) -> list[set[int]]:
    begin = b"-----BEGIN X509 CRL-----"
    lists = [x509.load_pem_x509_crl(begin + part) for part in pem.split(begin)[1:]]
    return [{one.serial_number for one in crl} for crl in lists]


def test_a_list_takes_the_place_of_the_older_one_of_its_issuer_only():
    old = AUTHORITY.revocation_list([("a", NOW)], now_ms=NOW)
    others = OTHER.revocation_list([("b", NOW)], now_ms=NOW)
    fresh = AUTHORITY.revocation_list([("a", NOW), ("c", NOW)], now_ms=NOW)
    merged = merge_lists(old + others, [fresh])
    assert listed(merged) == [{0xA, 0xC}, {0xB}]
    assert merge_lists(merged, [fresh]) == merged
    later = AUTHORITY.revocation_list([("a", NOW), ("c", NOW)], now_ms=NOW + DAY_MS)
    assert merge_lists(merged, [later]) == merged


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_known_lists_of_a_former_authority_the_newer_stays(backwards):
    known = [
        OTHER.revocation_list([("b", NOW)], now_ms=NOW),
        OTHER.revocation_list([("b", NOW), ("d", NOW)], now_ms=NOW + DAY_MS),
    ]
    fresh = AUTHORITY.revocation_list([], now_ms=NOW)
    merged = merge_lists(b"".join(known[::-1] if backwards else known), [fresh])
    assert listed(merged) == [set(), {0xB, 0xD}]
    assert listed_issuers(merged) == listed_issuers(known[0]) | listed_issuers(fresh)


def test_authorities_of_one_name_have_a_list_each():
    twin = Authority.create(
        PrivateKey.generate(), name=common_name(AUTHORITY.certificate), now_ms=NOW
    )
    lists = [one.revocation_list([], now_ms=NOW) for one in (AUTHORITY, twin)]
    assert listed(merge_lists(b"", lists)) == [set(), set()]


@pytest.mark.parametrize("old", [b"", b"no list", b"-----BEGIN X509 CRL-----\nbroken\n"])
def test_what_is_no_list_is_replaced(old):
    fresh = AUTHORITY.revocation_list([], now_ms=NOW)
    assert merge_lists(old, [fresh]) == fresh
