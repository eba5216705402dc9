"""The device's link, over a real broker in a process of its own."""

from __future__ import annotations

import contextlib
import queue
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import msgspec
import pytest
from broker_process import BROKERS, SECONDS, Peer, start_broker, wait_for
from world_waiting import eventually

from edgepack_contract.certificates import Authority
from edgepack_contract.errors import UntrustedDocumentError
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.messages import State
from edgepack_contract.sealing import seal, unseal
from edgepack_contract.states import Presence
from edgepack_contract.tls import client_context
from edgepack_contract.topics import Kind, device_topic, fleet_state_topic
from edgepack_runtime.link import IN_FLIGHT, Broker, DeviceLink, LinkIdentity

KEY = bytes(range(32))
NOW = 1_780_000_000_000
STATE = device_topic("default", "pi-1", Kind.STATE)
BIRTH = device_topic("default", "pi-1", Kind.BIRTH)
REPORTED = device_topic("default", "pi-1", Kind.REPORTED)
TELEMETRY = device_topic("default", "pi-1", Kind.TELEMETRY, "main")


@pytest.fixture(params=BROKERS)
def broker(request, tmp_path):
    broker = start_broker(request.param, tmp_path)
    yield broker
    broker.kill()


class Device:
    def __init__(self, port, session=7, tls=None):
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.connections: queue.Queue[int] = queue.Queue()
        self.link = DeviceLink(
            LinkIdentity("default", "pi-1", session, KEY),
            Broker(host="127.0.0.1", port=port, tls=tls),
            on_message=lambda topic, payload: self.heard.put((topic, payload)),
            on_connected=lambda: self.connections.put(session),
            rng=random.Random(1),
            now_ms=lambda: NOW,
        )

    def connect(self):
        self.link.start()
        self.wait_connected()

    def wait_connected(self):
        self.connections.get(timeout=SECONDS)


@pytest.fixture
def device(broker):
    device = Device(broker.port)
    yield device
    device.link.stop()


@pytest.fixture
def peer(broker):
    peer = Peer(broker.port, "edgepack/v1/default/pi-1/#")
    yield peer
    peer.close()


def body_of(topic, payload, key=KEY):
    return unseal(payload, topic=topic, key=key, max_bytes=2**20)


def next_state(peer):
    """The next presence that the device, or the broker in its name, tells: checked for its MAC."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        topic, payload = peer.heard.get(timeout=SECONDS)
        if topic == STATE:
            return msgspec.json.decode(body_of(topic, payload), type=State)
    raise AssertionError("no state was heard")


def sealed(topic, body):
    return (topic, seal(body, topic=topic, key=KEY))


def test_it_says_online_and_at_its_end_offline(device, peer):
    device.connect()
    online = next_state(peer)
    assert (online.state, online.session, online.at) == (Presence.ONLINE, 7, NOW)
    device.link.stop()
    offline = next_state(peer)
    assert (offline.state, offline.session) == (Presence.OFFLINE, 7)
    assert offline.sequence > online.sequence


def test_a_killed_process_is_told_lost_by_its_will(broker, peer):
    code = (
        "import random, sys\n"
        "from edgepack_runtime.link import Broker, DeviceLink, LinkIdentity\n"
        "who = LinkIdentity('default', 'pi-1', 9, bytes(range(32)))\n"
        "link = DeviceLink(who, Broker(host='127.0.0.1', port=int(sys.argv[1])),\n"
        "    on_message=print, on_connected=lambda: print('up', flush=True),\n"
        "    rng=random.Random(1), now_ms=lambda: 1)\n"
        "link.start()\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(broker.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        assert next_state(peer).state is Presence.ONLINE
        child.kill()
    lost = next_state(peer)
    assert (lost.state, lost.session) == (Presence.LOST, 9)


def test_what_it_says_carries_a_mac_for_its_topic_and_no_other(device, peer):
    device.connect()
    device.link.retain(Kind.BIRTH, b'{"a":1}')
    wait_for(peer.heard, sealed(BIRTH, b'{"a":1}'))
    _, payload = sealed(BIRTH, b'{"a":1}')
    with pytest.raises(UntrustedDocumentError):
        body_of(REPORTED, payload)
    with pytest.raises(UntrustedDocumentError):
        body_of(BIRTH, payload, key=bytes(32))


def test_what_is_retained_is_there_for_who_comes_later(device, broker, peer):
    device.connect()
    device.link.retain(Kind.REPORTED, b'{"a":1}')
    wait_for(peer.heard, sealed(REPORTED, b'{"a":1}'))
    late = Peer(broker.port, REPORTED)
    wait_for(late.heard, sealed(REPORTED, b'{"a":1}'))
    late.close()


def test_what_was_said_before_the_connection_is_said_with_it(device, peer):
    device.link.retain(Kind.BIRTH, b'{"a":1}')
    device.link.retain(Kind.BIRTH, b'{"a":2}')
    device.connect()
    wait_for(peer.heard, sealed(BIRTH, b'{"a":2}'))


def test_a_broker_that_forgot_everything_is_told_everything_again(device, broker):
    device.connect()
    device.link.retain(Kind.BIRTH, b'{"a":1}')
    device.link.retain(Kind.REPORTED, b'{"a":2}')
    broker.kill()
    broker.start()
    device.wait_connected()
    peer = Peer(broker.port, "edgepack/v1/default/pi-1/#")
    heard = {}
    while not heard.keys() >= {BIRTH, REPORTED, STATE}:
        # the same may come twice: as it is said, and as what is retained
        heard.update([peer.heard.get(timeout=SECONDS)])
    peer.close()
    assert heard[BIRTH] == sealed(BIRTH, b'{"a":1}')[1]
    assert heard[REPORTED] == sealed(REPORTED, b'{"a":2}')[1]
    state = msgspec.json.decode(body_of(STATE, heard[STATE]), type=State)
    assert (state.state, state.sequence) == (Presence.ONLINE, 2)


def test_nothing_of_an_earlier_connection_is_sent_once_more(device, broker):
    """A message that no broker acknowledged must not come after what is newer."""
    device.connect()
    broker.process.send_signal(signal.SIGSTOP)  # takes bytes, acknowledges nothing
    for number in range(3):
        device.link.retain(Kind.REPORTED, b'{"old":%d}' % number)
        assert device.link.send(Kind.TELEMETRY, "main", b'{"n":%d}' % number, qos=1)
    broker.kill()
    broker.start()
    peer = Peer(broker.port, "edgepack/v1/default/pi-1/#")
    device.wait_connected()
    device.link.retain(Kind.BIRTH, b'{"last":1}')
    heard = []
    while not heard or heard[-1][0] != BIRTH:
        heard.append(peer.heard.get(timeout=SECONDS))
    peer.close()
    assert {topic for topic, _ in heard} == {STATE, REPORTED, BIRTH}
    assert {one for one in heard if one[0] == REPORTED} == {sealed(REPORTED, b'{"old":2}')}


class MuteBroker:
    """Accepts connections and acknowledges nothing, as one that is overloaded does."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(SECONDS)
        self.port = self.server.getsockname()[1]

    def accept(self):
        connection, _ = self.server.accept()
        connection.settimeout(SECONDS)
        connection.recv(4096)
        connection.sendall(bytes([0x20, 2, 0, 0]))  # CONNACK, accepted
        return connection


def read_until(connection, text):
    seen = b""
    while text not in seen:
        more = connection.recv(65536)
        assert more, f"{text} was not sent"
        seen += more
    return seen


def test_many_lost_connections_do_not_silence_it():
    """What was never acknowledged used to fill the client's queue until nothing more went in."""
    broker = MuteBroker()
    device = Device(broker.port)
    device.link.start()
    for _ in range(6):
        with broker.accept() as connection:
            read_until(connection, STATE.encode())
            device.wait_connected()
            for number in range(IN_FLIGHT):
                assert device.link.send(Kind.TELEMETRY, "main", b'{"n":%d}' % number, qos=1)
    with broker.accept():
        device.wait_connected()
        device.link.stop()
    broker.server.close()


def test_it_hears_its_own_topics_and_the_fleets_state(device, peer):
    device.connect()
    next_state(peer)  # said after the subscription, so that is in force
    for topic in (
        device_topic("default", "pi-1", Kind.DESIRED),
        device_topic("default", "pi-1", Kind.ACKED, "main"),
        fleet_state_topic("default"),
    ):
        peer.client.publish(topic, b"x", 1).wait_for_publish(SECONDS)
        wait_for(device.heard, (topic, b"x"))
    peer.client.publish(device_topic("default", "pi-2", Kind.DESIRED), b"y", 1)
    peer.client.publish(fleet_state_topic("default"), b"z", 1)
    wait_for(device.heard, (fleet_state_topic("default"), b"z"))


def test_a_handler_that_fails_does_not_end_the_link(broker, peer, caplog):
    heard = queue.Queue()

    def fails(topic, payload):
        heard.put(payload)
        raise ValueError("a bug")

    device = Device(broker.port)
    device.link._on_message = fails
    device.connect()
    next_state(peer)
    for payload in (b"1", b"2"):
        peer.client.publish(fleet_state_topic("default"), payload, 1)
        assert heard.get(timeout=SECONDS) == payload
    device.link.stop()
    assert "message handler failed" in caplog.text


def test_without_a_connection_nothing_is_taken(device):
    assert not device.link.send(Kind.TELEMETRY, "main", b'{"n":1}', qos=1)
    assert not device.link.connected


def test_it_stops_without_a_broker_and_when_the_broker_has_just_gone(broker):
    never = Device(1)
    never.link.start()
    never.link.stop()
    device = Device(broker.port)
    device.connect()
    broker.process.kill()
    device.link.stop()


def test_sequences_of_a_session_grow_by_one(device):
    assert [device.link.next_sequence() for _ in range(3)] == [1, 2, 3]


AUTHORITY, OTHER = (
    Authority.create(PrivateKey.generate(), name="test", now_ms=time.time_ns() // 1_000_000)
    for _ in range(2)
)
DEVICE_KEY = PrivateKey.generate()


class TlsBroker(MuteBroker):
    """Speaks TLS, asks for a certificate, and says whom it saw."""

    def __init__(self, folder, clients=AUTHORITY):
        super().__init__()
        key = PrivateKey.generate()
        issued = AUTHORITY.issue_server(key.public, hosts=["127.0.0.1"], now_ms=now())
        (folder / "server.pem").write_bytes(issued.pem)
        write_private_key(folder / "server.key", key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.context.load_verify_locations(cadata=clients.pem.decode())
        self.context.verify_mode = ssl.CERT_REQUIRED

    def accept(self):
        """The next connection that speaks MQTT, and the serial number of its certificate."""
        while True:
            connection, _ = self.server.accept()
            connection.settimeout(SECONDS)
            tls = self.context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
            with contextlib.suppress(OSError):
                tls.do_handshake()
                if tls.recv(4096):
                    tls.sendall(bytes([0x20, 2, 0, 0]))
                    return tls, int(tls.getpeercert()["serialNumber"], 16)
            with tls, contextlib.suppress(OSError):
                # an alert is lost when what the other side sent was not read
                socket.socket.shutdown(tls, socket.SHUT_WR)
                socket.socket.recv(tls, 4096)

    def serve_one(self):
        connection, _ = self.accept()
        connection.close()


def now():
    return time.time_ns() // 1_000_000


@pytest.fixture
def tls_broker(tmp_path):
    (tmp_path / "broker").mkdir()
    broker = TlsBroker(tmp_path / "broker")
    yield broker
    broker.server.close()


class Enrolled:
    """A device's certificate and key in files, and the authorities that it believes in."""

    def __init__(self, folder):
        self.certificate, self.key = folder / "device.pem", folder / "device.key"
        self.authorities = [AUTHORITY.pem.decode()]
        write_private_key(self.key, DEVICE_KEY)

    def renew(self, authority=AUTHORITY, **how):
        issued = authority.issue_client(DEVICE_KEY.public, name="pi-1", now_ms=now(), **how)
        self.certificate.write_bytes(issued.pem)
        return int(issued.serial, 16)

    def context(self):
        return client_context(self.authorities, certificate=self.certificate, key=self.key)


@pytest.fixture
def enrolled(tmp_path):
    return Enrolled(tmp_path)


@pytest.fixture
def tls_device(tls_broker, enrolled):
    device = Device(tls_broker.port, tls=enrolled.context)
    yield device
    device.link.stop()


def test_over_tls_it_shows_the_certificate_that_is_there_at_each_connection(
    tls_broker, tls_device, enrolled
):
    first = enrolled.renew()
    tls_device.link.start()
    connection, seen = tls_broker.accept()
    with connection:
        tls_device.wait_connected()
        assert seen == first
        second = enrolled.renew()
        tls_device.link.reconnect()
        again, seen = tls_broker.accept()
        with again:
            tls_device.wait_connected()
            assert seen == second


def test_a_broker_that_nobody_vouches_for_is_not_told_anything(
    tls_broker, tls_device, enrolled, caplog
):
    """And it is believed without a restart when the keyring names its authority."""
    enrolled.renew()
    enrolled.authorities = [OTHER.pem.decode()]
    serving = threading.Thread(target=tls_broker.serve_one)
    serving.start()
    tls_device.link.start()
    eventually(lambda: "no connection to the broker 127.0.0.1:" in caplog.text, "words")
    assert "its certificate" in caplog.text
    assert serving.is_alive()
    enrolled.authorities = [AUTHORITY.pem.decode()]
    tls_device.wait_connected()
    serving.join()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda one: one.renew(days=0), "our certificate has expired"),
        (lambda one: one.renew(OTHER), "authority of our certificate"),
        (lambda one: one.certificate.unlink(), "cannot read"),
        (lambda one: one.certificate.write_bytes(b"junk"), "are not a certificate"),
    ],
    ids=["expired", "another authority's", "missing", "damaged"],
)
def test_a_certificate_that_is_no_good_is_named_and_a_new_one_taken_up(
    tls_broker, tls_device, enrolled, caplog, spoil, words
):
    enrolled.renew()
    spoil(enrolled)
    serving = threading.Thread(target=tls_broker.serve_one)
    serving.start()
    tls_device.link.start()
    eventually(lambda: words in caplog.text, lambda: caplog.text)
    enrolled.renew()
    tls_device.wait_connected()
    serving.join()


def test_a_broker_without_tls_is_told_apart(enrolled, caplog):
    enrolled.renew()
    plain = MuteBroker()
    device = Device(plain.port, tls=enrolled.context)
    device.link.start()
    connection, _ = plain.server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        eventually(lambda: "it does not speak TLS on this port" in caplog.text, "words")
    device.link.stop()
    plain.server.close()
