"""A real Mosquitto with our files as they are: nobody can be, read or write another."""

from __future__ import annotations

import contextlib
import socket
import ssl
from itertools import product

import pytest
from broker_process import SECONDS
from broker_tls import HOST, TlsBroker, new_authority, wall_ms

from edgepack_contract.keys import PrivateKey
from edgepack_contract.limits import LIMITS
from edgepack_contract.topics import Kind
from edgepack_fleet.broker_files import put_file
from edgepack_fleet.config import MqttConfig
from edgepack_fleet.eviction import evict
from edgepack_fleet.mqtt_config import AUTHORITIES, CONFIG, MAX_PACKET_BYTES, REVOKED

pytestmark = pytest.mark.foreign("mosquitto")

ROOT = "edgepack/v1/default"
UP = ("state", "birth", "reported", "health", "telemetry/digits", "event/crash", "ack/ping")
DOWN = ("desired", "acked/digits", "cmd/ping")
ASKED, ANSWERED = "request/digits", "response/line-3"
"""Of clients, which the fleet is none of."""

ALL = (*UP, *DOWN, ASKED, ANSWERED)

CLEARED = ("state", "birth", "reported")
"""What the fleet clears of a device that is decommissioned."""

DEVICES = ("pi-1", "pi-2")
FLEET = "_fleet"
OF_FLEET = (f"{ROOT}/{FLEET}/state", f"{ROOT}/{FLEET}/keyring")
TOPICS = [
    *(f"{ROOT}/{device}/{rest}" for device, rest in product(DEVICES, ALL)),
    *OF_FLEET,
    f"{ROOT}/pi-1/other",
    f"{ROOT}/pi-1",
    f"{ROOT}/pi-1/telemetry/digits/more",
    "edgepack/v1/other/pi-1/state",
    "elsewhere",
]
EVERYTHING = ("#", "+/#", "$SYS/#", "edgepack/#", f"{ROOT}/+/desired", f"{ROOT}/+/acked/+", *TOPICS)


def may_write(who: str, topic: str) -> bool:
    """The rule, said here once more and not taken from the code."""
    if who == FLEET:
        told = [f"{ROOT}/{device}/{rest}" for device, rest in product(DEVICES, DOWN + CLEARED)]
        return topic in told or topic in OF_FLEET
    return topic in [f"{ROOT}/{who}/{rest}" for rest in (*UP, ANSWERED)]


def may_read(who: str, topic: str) -> bool:
    if topic in OF_FLEET:
        return True
    if who == FLEET:
        return topic in [f"{ROOT}/{device}/{rest}" for device, rest in product(DEVICES, UP)]
    return topic in [f"{ROOT}/{who}/{rest}" for rest in (*DOWN, ASKED)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    broker = TlsBroker(tmp_path_factory.mktemp("broker"))
    for name in (*DEVICES, FLEET):
        broker.certify(name)
    yield broker
    broker.kill()


@pytest.fixture
def broker(shared):
    """The broker of all tests here; what clients a test made are closed after it."""
    made = []
    connect = shared.client
    shared.client = lambda *rest, **options: made.append(connect(*rest, **options)) or made[-1]
    yield shared
    shared.client = connect
    for client in made:
        client.close()


@pytest.fixture
def own(tmp_path):
    """A broker of the test's own."""
    broker = TlsBroker(tmp_path)
    for name in (*DEVICES, FLEET):
        broker.certify(name)
    yield broker
    broker.kill()


def finish(clients):
    """What each has heard until now: the last word to each comes after everything before it."""
    for name in clients:
        if name == FLEET:
            clients[DEVICES[0]].publish(f"{ROOT}/{DEVICES[0]}/ack/done", b"done")
        else:
            clients[FLEET].publish(f"{ROOT}/{name}/cmd/done", b"done")
    heard = {}
    for name, client in clients.items():
        last = f"{ROOT}/{DEVICES[0]}/ack/done" if name == FLEET else f"{ROOT}/{name}/cmd/done"
        heard[name] = client.until(last, b"done")
    return heard


def test_everybody_hears_what_they_may_from_whom_it_may_come_and_nothing_else(broker):
    clients = {name: broker.client(name) for name in (*DEVICES, FLEET)}
    for client in clients.values():
        client.subscribe(*EVERYTHING)
    for writer, topic in product(clients, TOPICS):
        assert clients[writer].publish(topic, f"{writer} on {topic}".encode())
    heard = finish(clients)
    for reader, said in heard.items():
        wanted = {
            (topic, f"{writer} on {topic}".encode())
            for writer, topic in product(clients, TOPICS)
            if may_write(writer, topic) and may_read(reader, topic)
        }
        assert set(said) == wanted, reader
    # the rule above is not empty, and not everything
    sizes = {reader: len(set(said)) for reader, said in heard.items()}
    assert sizes == {"pi-1": 5, "pi-2": 5, FLEET: 2 * (len(UP) + len(CLEARED)) + 2}


def test_what_is_retained_where_it_may_not_be_is_never_delivered(broker):
    thief, victim, fleet = (broker.client(name) for name in ("pi-1", "pi-2", FLEET))
    for topic in (f"{ROOT}/pi-2/desired", f"{ROOT}/pi-2/state", *OF_FLEET):
        thief.publish(topic, b"poison", retain=True)
    thief.subscribe("#")
    victim.subscribe("#", f"{ROOT}/pi-2/desired", *OF_FLEET)
    fleet.subscribe("#", f"{ROOT}/+/state", *OF_FLEET)
    heard = finish({"pi-1": thief, "pi-2": victim, FLEET: fleet})
    assert b"poison" not in [payload for said in heard.values() for _, payload in said]


def test_a_will_on_anothers_topic_is_not_published(broker):
    victim, fleet = broker.client("pi-2"), broker.client(FLEET)
    victim.subscribe("#")
    fleet.subscribe("#")
    for topic in (f"{ROOT}/pi-2/state", f"{ROOT}/pi-2/desired", f"{ROOT}/{FLEET}/state"):
        broker.client("pi-1", will=topic).drop()
    # its own will comes, so the broker has seen the ends of the others before
    broker.client("pi-1", will=f"{ROOT}/pi-1/state").drop()
    assert fleet.until(f"{ROOT}/pi-1/state", b"will") == []
    fleet.publish(f"{ROOT}/pi-2/cmd/done", b"done")
    assert victim.until(f"{ROOT}/pi-2/cmd/done", b"done") == []
    fleet.publish(f"{ROOT}/pi-1/state", b"", retain=True)


def test_the_id_and_the_user_of_another_are_not_to_be_had(broker):
    victim, fleet = broker.client("pi-2", client_id="pi-2"), broker.client(FLEET)
    thief = broker.client("pi-1", client_id="pi-2")
    thief.subscribe(f"{ROOT}/pi-2/desired", f"{ROOT}/pi-1/desired")
    fleet.publish(f"{ROOT}/pi-2/desired", b"for pi-2")
    fleet.publish(f"{ROOT}/pi-1/desired", b"for pi-1")
    assert thief.heard.get(timeout=SECONDS) == (f"{ROOT}/pi-1/desired", b"for pi-1")
    assert not victim.ended.is_set()
    assert victim.publish(f"{ROOT}/pi-2/health", b"still here")


@pytest.mark.parametrize("name", ["#", "+", "pi-2/desired", "%u"])
def test_a_name_with_a_meaning_in_topics_has_no_rights(broker, name):
    broker.certify(name)
    client, fleet = broker.client(name), broker.client(FLEET)
    client.subscribe("#", f"{ROOT}/pi-2/desired")
    fleet.subscribe("#")
    client.publish(f"{ROOT}/pi-2/state", b"x")
    fleet.publish(f"{ROOT}/pi-2/desired", b"x")
    # what was published before a publish is acknowledged has been delivered before
    assert client.publish("anything", b"last")
    assert fleet.publish("anything", b"last")
    assert client.heard.empty()
    assert fleet.heard.empty()


def test_what_is_larger_than_any_message_ends_the_connection(broker):
    fleet, device = broker.client(FLEET), broker.client("pi-1")
    fleet.subscribe("#")
    topic = f"{ROOT}/pi-1/telemetry/digits"
    assert device.publish(topic, b"x" * LIMITS.message_bytes)
    assert fleet.heard.get(timeout=SECONDS) == (topic, b"x" * LIMITS.message_bytes)
    device.publish(topic, b"y" * MAX_PACKET_BYTES)
    assert device.ended.wait(SECONDS)
    again = broker.client("pi-1")
    again.publish(topic, b"z")
    assert fleet.until(topic, b"z") == []


def test_without_a_certificate_of_the_fleet_nobody_comes_in(broker):
    assert broker.lets_in(broker.identity("pi-1"))
    assert not broker.lets_in(None)
    stranger = new_authority("edgepack test")
    broker.certify("stranger", by=stranger)
    assert not broker.lets_in(broker.identity("stranger"))
    broker.certify("late", days=-1 / 48)
    assert not broker.lets_in(broker.identity("late"))


def test_a_certificate_of_a_server_is_none_of_a_client(broker):
    key = PrivateKey.generate()
    issued = broker.authority.issue_server(key.public, hosts=["pi-1"], now_ms=wall_ms())
    broker.keep("server", key, issued)
    assert not broker.lets_in(broker.identity("server"))


def test_plain_mqtt_is_not_spoken(broker):
    with socket.create_connection((HOST, broker.port), SECONDS) as connection:
        connection.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04pi-1")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(16)[:1] != b"\x20"


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_is_revoked_does_not_come_in_again(own, newest):
    issued = own.certify("pi-1")
    assert own.lets_in(own.identity("pi-1"), newest=newest)
    own.revoke(issued)
    assert not own.lets_in(own.identity("pi-1"), newest=newest)
    assert own.lets_in(own.identity("pi-2"), newest=newest)
    own.certify("pi-1")
    assert own.lets_in(own.identity("pi-1"), newest=newest)


def test_two_lists_of_the_same_second_both_count(own):
    one, two, now_ms = own.certify("pi-1"), own.certify("pi-2"), wall_ms()
    own.revoke(one, now_ms=now_ms)
    own.revoke(two, now_ms=now_ms)
    assert not own.lets_in(own.identity("pi-1"))
    assert not own.lets_in(own.identity("pi-2"))


@pytest.mark.parametrize("content", [b"not a list", b"", None])
def test_without_a_list_or_with_a_broken_one_the_broker_does_not_start(own, content):
    own.kill()
    path = own.out / REVOKED
    path.unlink()
    if content is not None:
        put_file(path, content)
    with contextlib.suppress(AssertionError):
        own.start()
    assert own.process.wait(SECONDS) != 0
    assert "certificate revocation file" in own.said


def test_a_list_of_another_authority_lets_nobody_in(own):
    foreign = new_authority("somebody else")
    put_file(own.out / REVOKED, foreign.revocation_list([], now_ms=wall_ms()))
    own.reload()
    assert not own.lets_in(own.identity("pi-1"))


def test_a_resumed_session_is_not_a_way_around_the_list(own):
    issued = own.certify("pi-1")
    context = ssl.create_default_context(cafile=str(own.out / AUTHORITIES))
    context.load_cert_chain(*own.identity("pi-1"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def greet(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        plain = socket.create_connection((HOST, own.port), SECONDS)
        with context.wrap_socket(plain, server_hostname=HOST, session=session) as connection:
            connection.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04pi-1")
            return connection.session if connection.recv(4) == b"\x20\x02\x00\x00" else None

    session = greet(None)
    assert session is not None
    assert greet(session) is not None
    own.revoke(issued)
    with contextlib.suppress(OSError):
        assert greet(session) is None


def test_who_is_connected_stays_after_the_list_and_goes_when_evicted(own):
    """Why there is an eviction at all; and it touches nobody else."""
    issued = own.certify("pi-1")
    revoked, other = own.client("pi-1", client_id="anything"), own.client("pi-2")
    own.revoke(issued)
    assert revoked.publish(f"{ROOT}/pi-1/health", b"still in")
    config = MqttConfig(host=HOST, port=own.port, tls_ca=str(own.out / AUTHORITIES))
    evict("pi-1", config, own.authority, now_ms=wall_ms())
    assert revoked.ended.wait(SECONDS)
    assert not own.lets_in(own.identity("pi-1"))
    assert other.publish(f"{ROOT}/pi-2/health", b"untouched")
    other.close()
    revoked.close()


def test_an_eviction_works_where_clients_choose_their_ids(own):
    """Other brokers have no common name as client id; our daemon's is the device's id."""
    own.kill()
    path = own.out / CONFIG
    path.write_text(path.read_text().replace("use_username_as_clientid true", ""))
    own.start()
    device, other = own.client("pi-1", client_id="pi-1"), own.client("pi-2", client_id="pi-2")
    config = MqttConfig(host=HOST, port=own.port, tls_ca=str(own.out / AUTHORITIES))
    evict("pi-1", config, own.authority, now_ms=wall_ms())
    assert device.ended.wait(SECONDS)
    assert other.publish(f"{ROOT}/pi-2/health", b"untouched")
    for client in (device, other):
        client.close()


def test_an_eviction_clears_nothing_that_is_retained(own):
    fleet, device = own.client(FLEET), own.client("pi-1", will=f"{ROOT}/pi-1/state")
    fleet.publish(f"{ROOT}/pi-1/desired", b"kept", retain=True)
    config = MqttConfig(host=HOST, port=own.port, tls_ca=str(own.out / AUTHORITIES))
    evict("pi-1", config, own.authority, now_ms=wall_ms())
    assert device.ended.wait(SECONDS)
    fleet.subscribe(f"{ROOT}/pi-1/state")
    assert fleet.heard.get(timeout=SECONDS) == (f"{ROOT}/pi-1/state", b"will")
    device.close()
    back = own.client("pi-1")
    back.subscribe(f"{ROOT}/pi-1/desired")
    assert back.heard.get(timeout=SECONDS) == (f"{ROOT}/pi-1/desired", b"kept")
    for client in (fleet, back):
        client.close()


def test_kinds_of_topics_are_all_in_the_matrix():
    named = {rest.split("/")[0] for rest in ALL}
    assert named == {kind.value for kind in Kind}
