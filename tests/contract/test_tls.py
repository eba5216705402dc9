"""Who a client believes, over real connections: authorities, hosts, and dates by a clock."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from edgepack_contract.certificates import Authority
from edgepack_contract.clock import BUILT_MS, TrustedClock
from edgepack_contract.errors import ConfigError
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.tls import client_context, read_authorities, tls_trouble

DAY_MS = 86_400_000
NOW = max(BUILT_MS, time.time_ns() // 1_000_000)
BEHIND, AHEAD = 0, 4_070_908_800_000  # 1970 and 2099
SECONDS = 20.0

AUTHORITY = Authority.create(PrivateKey.generate(), name="test", now_ms=NOW - 400 * DAY_MS)
STRANGER = Authority.create(PrivateKey.generate(), name="test", now_ms=NOW - 400 * DAY_MS)
GOOD = [AUTHORITY.pem.decode()]


@dataclass
class Server:
    """One TLS server on loopback that answers every connection with who it saw."""

    folder: object
    authority: Authority = AUTHORITY
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    begins_ms: int = NOW
    days: int = 365
    clients: Authority | None = None
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    port: int = field(init=False)

    def __enter__(self):
        key = PrivateKey.generate()
        issued = self.authority.issue_server(
            key.public, hosts=self.hosts, now_ms=self.begins_ms, days=self.days
        )
        files = save(self.folder, "server", issued.pem, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self.version
        context.load_cert_chain(*files)
        if self.clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.clients.pem.decode())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=[context])
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self, context):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(SECONDS)
            # a client that has gone already is what some of these tests are about
            with connection, contextlib.suppress(OSError):
                self._answer(context, connection)

    def _answer(self, context, connection):
        options = {"server_side": True, "do_handshake_on_connect": False}
        with context.wrap_socket(connection, **options) as tls:
            try:
                tls.do_handshake()
                if not tls.recv(4096):
                    return
                peer = tls.getpeercert()
                name = (peer["subject"][0][0][1] if peer else "nobody").encode()
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name))
            except OSError:
                # the alert is read only by a client whose own bytes were taken
                with contextlib.suppress(OSError):
                    tls.shutdown(socket.SHUT_WR)
                    socket.socket.recv(tls, 4096)


def save(folder, name, pem, key):
    certificate, path = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(pem)
    write_private_key(path, key)
    return certificate, path


def clock(system_ms, owner_ms=0):
    return TrustedClock(lambda: system_ms, owner_ms=owner_ms)


def seen_by(server, context, host="localhost"):
    """Whom the server saw."""
    connection = http.client.HTTPSConnection(host, server.port, timeout=SECONDS, context=context)
    with closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().read().decode()


def trouble(server, context, host="localhost"):
    with pytest.raises(ssl.SSLError) as caught:
        seen_by(server, context, host)
    return tls_trouble(caught.value)


CLOCKS = pytest.mark.parametrize(
    "told", [None, clock(NOW), clock(BEHIND), clock(BEHIND, NOW)],
    ids=["none", "right", "1970", "1970 with a floor"],
)  # fmt: skip


@CLOCKS
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_right_server_is_believed(tmp_path, told, host):
    with Server(tmp_path) as server:
        assert seen_by(server, client_context(GOOD, clock=told), host) == "nobody"


@CLOCKS
def test_a_server_of_another_authority_is_not(tmp_path, told):
    with Server(tmp_path, authority=STRANGER) as server:
        words = trouble(server, client_context(GOOD, clock=told))
        assert words.startswith("its certificate ")
        assert "check the address and the ca" in words or "cannot be trusted" in words


def test_an_authority_that_only_the_fleet_knows_is_not_the_systems(tmp_path):
    with Server(tmp_path) as server:
        assert "certificate" in trouble(server, client_context([]))


@CLOCKS
def test_a_server_of_another_name_is_not(tmp_path, told):
    with Server(tmp_path, hosts=("broker.example",)) as server:
        context = client_context(GOOD, clock=told)
        assert trouble(server, context).startswith("its certificate is for other host names")
        assert trouble(server, context, "127.0.0.1").startswith(
            "its certificate is for other addresses"
        )


def test_a_certificate_that_has_ended(tmp_path):
    ended = {"begins_ms": NOW - 30 * DAY_MS, "days": 10}
    with Server(tmp_path, **ended) as server:
        for told in (None, clock(NOW), clock(BEHIND, NOW), clock(AHEAD)):
            words = trouble(server, client_context(GOOD, clock=told))
            assert words.startswith("its certificate has expired; renew it there")


def test_a_lower_bound_proves_only_what_has_ended_before_it(tmp_path):
    """At 1970 with the release's date, one that ended later may still be valid for all we know."""
    with Server(tmp_path, begins_ms=BUILT_MS, days=20) as server:
        told = clock(BEHIND)
        context = client_context(GOOD, clock=told)
        assert seen_by(server, context) == "nobody"
        told.learn_of_owner(BUILT_MS + 19 * DAY_MS)
        assert seen_by(server, context) == "nobody"
        told.learn_of_owner(BUILT_MS + 21 * DAY_MS)
        assert "has expired" in trouble(server, context)


def test_what_a_fleet_key_dated_ends_no_certificate(tmp_path):
    """Else a stolen one could keep a device without a clock from its way out."""
    told = clock(BEHIND)
    told.learn(AHEAD)
    with Server(tmp_path) as server:
        assert seen_by(server, client_context(GOOD, clock=told)) == "nobody"


def test_a_certificate_that_is_not_valid_yet(tmp_path):
    with Server(tmp_path, begins_ms=NOW + 30 * DAY_MS) as server:
        for told in (None, clock(NOW)):
            words = trouble(server, client_context(GOOD, clock=told))
            assert words.startswith("its certificate is not valid yet; set this machine's clock")
        for floor in (0, NOW):
            assert seen_by(server, client_context(GOOD, clock=clock(BEHIND, floor))) == "nobody"


def test_the_clock_is_asked_at_each_connection(tmp_path):
    """The same context, before and after the machine's clock was set."""
    times = [BEHIND]
    context = client_context(GOOD, clock=TrustedClock(lambda: times[0]))
    with Server(tmp_path, begins_ms=NOW + 30 * DAY_MS) as server:
        assert seen_by(server, context) == "nobody"
        times[0] = NOW
        assert "not valid yet" in trouble(server, context)
        times[0] = BEHIND
        assert seen_by(server, context) == "nobody"


def test_a_handshake_that_is_asked_for_later_is_judged_too(tmp_path):
    with Server(tmp_path, begins_ms=NOW - 30 * DAY_MS, days=10) as server:
        context = client_context(GOOD, clock=clock(BEHIND, NOW))
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        with (
            context.wrap_socket(
                plain, server_hostname="localhost", do_handshake_on_connect=False
            ) as tls,
            pytest.raises(ssl.SSLCertVerificationError, match="ended"),
        ):
            tls.do_handshake()


def test_who_must_show_a_certificate(tmp_path):
    key = PrivateKey.generate()
    issued = AUTHORITY.issue_client(key.public, name="pi-1", now_ms=NOW)
    certificate, path = save(tmp_path, "device", issued.pem, key)
    with Server(tmp_path, clients=AUTHORITY) as server:
        shown = client_context(GOOD, certificate=certificate, key=path)
        assert seen_by(server, shown) == "pi-1"
        assert trouble(server, client_context(GOOD)).startswith("it wants a certificate")


def test_a_certificate_that_the_server_does_not_take(tmp_path):
    key = PrivateKey.generate()
    ended = AUTHORITY.issue_client(key.public, name="pi-1", now_ms=NOW - 30 * DAY_MS, days=10)
    certificate, path = save(tmp_path, "device", ended.pem, key)
    with Server(tmp_path, clients=AUTHORITY) as server:
        shown = client_context(GOOD, certificate=certificate, key=path)
        assert trouble(server, shown) == "it says that our certificate has expired; renew it"
        certificate.write_bytes(STRANGER.issue_client(key.public, name="x", now_ms=NOW).pem)
        shown = client_context(GOOD, certificate=certificate, key=path)
        assert "our certificate" in trouble(server, shown)


def test_what_does_not_speak_tls(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            pytest.raises(ssl.SSLError) as caught,
            socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as plain,
        ):
            client_context(GOOD).wrap_socket(plain, server_hostname="localhost")
        thread.join()
    assert tls_trouble(caught.value).startswith("it does not speak TLS on this port")


def test_versions_before_1_2_are_not_spoken():
    assert client_context([]).minimum_version is ssl.TLSVersion.TLSv1_2


def test_what_cannot_be_used_is_named(tmp_path):
    key, other = PrivateKey.generate(), PrivateKey.generate()
    issued = AUTHORITY.issue_client(key.public, name="pi-1", now_ms=NOW)
    certificate, _ = save(tmp_path, "device", issued.pem, other)
    with pytest.raises(ConfigError, match="authority is not a certificate") as caught:
        client_context(["junk"])
    assert caught.value.code == "bad-authority"
    for shown, secret in (
        (certificate, tmp_path / "device.key"),
        (certificate, tmp_path / "none.key"),
        (tmp_path / "none.pem", tmp_path / "device.key"),
    ):
        with pytest.raises(ConfigError, match=str(shown)) as caught:
            client_context(GOOD, certificate=shown, key=secret)
        assert caught.value.code == "bad-certificate"


def test_an_encrypted_key_is_refused_and_nobody_is_asked(tmp_path):
    key = PrivateKey.generate()
    issued = AUTHORITY.issue_client(key.public, name="pi-1", now_ms=NOW)
    certificate, path = tmp_path / "device.pem", tmp_path / "device.key"
    certificate.write_bytes(issued.pem)
    write_private_key(path, key, b"passphrase")
    with pytest.raises(ConfigError, match="are not a certificate"):
        client_context(GOOD, certificate=certificate, key=path)


def test_authorities_of_a_file(tmp_path):
    path = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=r"cannot read .*ca\.pem"):
        read_authorities(path)
    path.write_bytes(AUTHORITY.pem + STRANGER.pem)
    with Server(tmp_path, authority=STRANGER) as server:
        assert seen_by(server, client_context(read_authorities(path))) == "nobody"
    path.write_bytes(b"x" * 10_000_000)
    with pytest.raises(ConfigError, match="more than"):
        read_authorities(path)
