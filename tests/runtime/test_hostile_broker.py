"""A broker that sends what no broker may: the link goes on, or comes back, and hears what is true.

What is wrong with the messages themselves is in ``test_daemon.py``, ``test_orders.py`` and
``test_mqtt_predict.py``.
"""

from __future__ import annotations

import queue
import random
import socket
import threading

import pytest
from broker_process import SECONDS

from edgepack_runtime.link import Broker, DeviceLink, LinkIdentity

NOW = 1_780_000_000_000
TOPIC = b"edgepack/v1/default/pi-1/desired"
CONNACK = {False: b"\x20\x02\x00\x00", True: b"\x20\x03\x00\x00\x00"}


def packet(kind: int, body: bytes, *, size: bytes | None = None) -> bytes:
    """A packet of at most 127 bytes, or one whose size is a lie."""
    return bytes([kind]) + (bytes([len(body)]) if size is None else size) + body


def text(raw: bytes) -> bytes:
    return len(raw).to_bytes(2) + raw


def aliased(topic: bytes, alias: int) -> bytes:
    return packet(0x30, text(topic) + b"\x03\x23" + alias.to_bytes(2) + b"x")


BOTH = {
    "a topic that is no text": packet(0x30, text(b"\xff\xfe") + b"x"),
    "a topic with a null": packet(0x30, text(b"edgepack\0v1") + b"x"),
    "a topic with a wildcard": packet(0x30, text(b"edgepack/#") + b"x"),
    "a topic of another device": packet(0x30, text(TOPIC.replace(b"pi-1", b"pi-2")) + b"x"),
    "a topic longer than its packet": packet(0x30, b"\xff\xffx"),
    "no topic": packet(0x30, text(b"")),
    "no body at all": packet(0x30, b""),
    "a third quality of service": packet(0x36, text(TOPIC) + b"\0\1x"),
    "a size that does not end": packet(0x30, b"", size=b"\xff\xff\xff\xff\xff"),
    "a packet that no broker sends": packet(0x82, b"\0\1" + text(b"#") + b"\1"),
    "packet 0": packet(0x00, b""),
    "an acknowledgement of nothing": packet(0x40, b"\xff\xff"),
    "a second greeting": b"\x20\x02\x00\x00",
    "an answer to no ping": packet(0xD0, b""),
}
CUT = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a packet of 256 MiB that does not come": packet(0x30, text(TOPIC), size=b"\xff\xff\xff\x7f"),
    "half a packet": packet(0x30, text(TOPIC))[:9],
}
"""After these it hangs up."""
OF_5 = {
    "an alias that it did not allow": aliased(TOPIC, 1),
    "an alias of nothing": aliased(b"", 7),
    "alias 0": aliased(TOPIC, 0),
    "properties longer than the packet": packet(0x30, text(TOPIC) + b"\x7fx"),
    "a property that is none": packet(0x30, text(TOPIC) + b"\x02\x7f\x00x"),
    "a goodbye with a reason that is none": packet(0xE0, b"\x55\x00"),
}


class Hostile:
    """Greets, sends one packet, and on this connection or the next what is true."""

    def __init__(self, sent: bytes, *, version_5: bool) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(SECONDS)
        self.port = self._server.getsockname()[1]
        self._sent, self._version_5 = sent, version_5
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        sent = self._sent
        while not self._ended.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self._attend(connection, sent)
            sent = b""

    def _attend(self, connection: socket.socket, sent: bytes) -> None:
        connection.settimeout(SECONDS)
        good = packet(0x30, text(TOPIC) + b"\0" * self._version_5 + b"good")
        try:
            connection.recv(4096)
            connection.sendall(CONNACK[self._version_5] + sent)
            if sent in CUT.values():
                return
            connection.sendall(good)
            while connection.recv(4096):
                pass
        except OSError:
            pass

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()


def heard(sent: bytes, *, version_5: bool) -> list[bytes]:
    """What a link hands over of a hostile packet and the true message after it."""
    broker = Hostile(sent, version_5=version_5)
    found: queue.Queue[tuple[str, bytes]] = queue.Queue()
    link = DeviceLink(
        LinkIdentity("default", "pi-1", 7, bytes(32)),
        Broker(host="127.0.0.1", port=broker.port, version_5=version_5),
        on_message=lambda topic, payload: found.put((topic, payload)),
        on_connected=lambda: None, rng=random.Random(1), now_ms=lambda: NOW,
    )  # fmt: skip
    link._client.reconnect_delay_set(0, 1)
    link.start()
    try:
        messages = []
        while not messages or messages[-1] != (TOPIC.decode(), b"good"):
            messages.append(found.get(timeout=SECONDS))
        return messages[:-1]
    finally:
        link._client.disconnect()
        link._client.loop_stop()
        broker.close()


@pytest.mark.parametrize("case", BOTH | CUT)
def test_a_packet_that_may_not_be_does_not_end_the_link(case):
    assert all(topic != TOPIC.decode() for topic, _ in heard((BOTH | CUT)[case], version_5=False))


@pytest.mark.parametrize("case", OF_5)
def test_a_packet_of_mqtt_5_that_may_not_be_does_not_end_the_link(case):
    heard(OF_5[case], version_5=True)
