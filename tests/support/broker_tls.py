"""Debian's Mosquitto with the files of ``edgepack fleet mqtt-config``, and who talks over it."""

from __future__ import annotations

import contextlib
import getpass
import os
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path, PurePosixPath
from typing import Any

import paho.mqtt.client as mqtt
from broker_process import SECONDS, Broker
from paho.mqtt.enums import CallbackAPIVersion

from edgepack_cli.demo.ports import free_port
from edgepack_contract.certificates import Authority, Issued
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.tls import FreshHandshake, client_context, read_authorities
from edgepack_fleet.broker_files import BrokerRequest, Trusted, put_file, write_broker_files
from edgepack_fleet.mqtt_config import AUTHORITIES, REVOKED

HOST = "127.0.0.1"


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def new_authority(name: str = "edgepack test") -> Authority:
    return Authority.create(PrivateKey.generate(), name=name, now_ms=wall_ms())


class Mosquitto(Broker):
    """A Mosquitto whose own file includes ours, as Debian's does."""

    def __init__(self, folder: Path, out: Path, port: int) -> None:
        self.folder, self.out = folder, out
        self.pid_file = folder / "mosquitto.pid"
        self.log = folder / "mosquitto.log"
        self.port = port
        self.start()

    def start(self) -> None:
        # started by root it would become another user, who may not enter the test's folder
        (self.folder / "mosquitto.conf").write_text(
            f"user {getpass.getuser()}\npid_file {self.pid_file}\npersistence true\n"
            f"persistence_location {self.folder}/\nlog_type all\ninclude_dir {self.out}\n"
        )
        program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        assert program is not None
        with self.log.open("ab") as log:
            before = self.running
            self.process = subprocess.Popen(
                [program, "-c", self.folder / "mosquitto.conf"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            # it listens before it handles signals: a reload in between would end it
            if self.running == before:
                continue
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port)):
                return
        raise AssertionError(self.said)

    @property
    def running(self) -> int:
        """How often the broker has said that it runs."""
        return self.said.count(" running\n")

    def reload(self) -> None:
        """SIGHUP, and wait until it has been heard."""
        before = self.said.count("Reloading config")
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + SECONDS
        while self.said.count("Reloading config") == before:
            assert time.monotonic() < deadline, self.said
        # the line is written first: who is answered from here on is answered after the reload
        context = ssl.create_default_context(cafile=str(self.out / AUTHORITIES))
        plain = socket.create_connection((HOST, self.port), SECONDS)
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_hostname=HOST) as one:
            one.recv(1)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class TlsBroker(Mosquitto):
    """A broker with an authority of its own, which certifies whomever a test needs."""

    def __init__(self, folder: Path) -> None:
        self.authority = new_authority()
        self.revoked: list[tuple[str, int]] = []
        port, out = free_port(), folder / "out"
        request = BrokerRequest("default", ["localhost", HOST], port, out, PurePosixPath(out))
        write_broker_files(request, self._trusted(), now_ms=wall_ms())
        self.keys = folder / "clients"
        self.keys.mkdir()
        super().__init__(folder, out, port)

    def certify(self, name: str, *, by: Authority | None = None, days: float = 1.0) -> Issued:
        """Make a key and certificate for a client; the newest of a name is what it shows."""
        key = PrivateKey.generate()
        issued = (by or self.authority).issue_client(
            key.public, name=name, now_ms=wall_ms(), days=days
        )
        self.keep(name, key, issued)
        return issued

    def keep(self, name: str, key: PrivateKey, issued: Issued) -> None:
        certificate, path = self.identity(name)
        path.unlink(missing_ok=True)
        write_private_key(path, key)
        certificate.write_bytes(issued.pem)

    def identity(self, name: str) -> tuple[Path, Path]:
        stem = name.encode().hex()
        return self.keys / f"{stem}.pem", self.keys / f"{stem}.key"

    def revoke(self, issued: Issued, *, now_ms: int | None = None) -> None:
        self.revoked.append((issued.serial, now_ms or wall_ms()))
        fresh = self.authority.revocation_list(self.revoked, now_ms=now_ms or wall_ms())
        put_file(self.out / REVOKED, fresh)
        self.reload()

    def client(self, name: str, **options: Any) -> Client:
        """Connect with the certificate of a name; it must be let in."""
        client = Client(self, self.identity(name), **options)
        assert client.connected.wait(SECONDS), (client.ends, self.said)
        return client

    def lets_in(self, identity: tuple[Path, Path] | None, **options: Any) -> bool:
        """Whether somebody gets as far as MQTT."""
        client = Client(self, identity, **options)
        try:
            return client.comes_in()
        finally:
            client.close()

    def _trusted(self) -> Trusted:
        fresh = self.authority.revocation_list([], now_ms=wall_ms())
        return Trusted(self.authority, [self.authority.pem], fresh)


class Client:
    """A paho client that keeps what it hears and when it was thrown out."""

    def __init__(
        self,
        broker: Mosquitto,
        identity: tuple[Path, Path] | None,
        *,
        client_id: str = "",
        will: str | None = None,
        newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.ends: list[str] = []
        self.connected, self.ended, self._acked = (threading.Event() for _ in range(3))
        certificate, key = identity or (None, None)
        authorities = read_authorities(broker.out / AUTHORITIES)
        context = client_context(authorities, certificate=certificate, key=key)
        context.maximum_version = newest
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False
        )
        self._client.tls_set_context(FreshHandshake(lambda: context))
        if will is not None:
            self._client.will_set(will, b"will", qos=1, retain=True)
        self._client.on_connect = self._came
        self._client.on_disconnect = self._went
        self._client.on_subscribe = lambda *_: self._acked.set()
        self._client.on_message = lambda _c, _u, m: self.heard.put((m.topic, bytes(m.payload)))
        try:
            self._client.connect(HOST, broker.port)
        except (OSError, ValueError) as error:
            self.ends.append(repr(error))
            self.ended.set()
        self._client.loop_start()

    def comes_in(self) -> bool:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not self.ended.is_set():
            if self.connected.wait(0.05):
                return True
        assert self.ended.is_set()
        return False

    def subscribe(self, *filters: str) -> None:
        self._acked.clear()
        self._client.subscribe([(one, 1) for one in filters])
        assert self._acked.wait(SECONDS)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Say something; whether the broker has taken note of it."""
        info = self._client.publish(topic, payload, 1, retain)
        try:
            info.wait_for_publish(SECONDS)
        except RuntimeError:
            return False
        return info.is_published()

    def drop(self) -> None:
        """Go without a goodbye, so that the will is published."""
        connection = self._client.socket()
        assert connection is not None
        connection.close()

    def until(self, topic: str, payload: bytes) -> list[tuple[str, bytes]]:
        """Everything that is heard before a message, which must come."""
        found = []
        while (one := self.heard.get(timeout=SECONDS)) != (topic, payload):
            found.append(one)
        return found

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # the collector may come to its sockets before it comes to paho's client, and complain
        self._client._reset_sockets(sockpair_only=True)

    def _came(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.ends.append(str(reason))
            self.ended.set()
        else:
            self.connected.set()

    def _went(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.ends.append(str(reason))
        self.ended.set()
