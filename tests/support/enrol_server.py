"""A fleet's doors for devices that join: a real HTTPS server, small, and hostile on demand."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from bundle_samples import fixed_key

from edgepack_contract.certificates import Authority, read_request
from edgepack_contract.dsse import claimed_payload
from edgepack_contract.enrolment import (
    BrokerAddress,
    EnrolAnswer,
    JoinString,
    Membership,
    RenewalAnswer,
    Standing,
    open_renewal,
)
from edgepack_contract.keyring import SCHEMA, Keyring, sign_keyring
from edgepack_contract.keys import PrivateKey, PublicKey, write_private_key

DAY_MS = 86_400_000
OWNER, STRANGER = fixed_key(40), fixed_key(41)
TOKEN = "epj_" + "t" * 43
MAC_KEY = "5a" * 32

KEYRING, ENROL, RENEW = "/api/v1/keyring", "/api/v1/enrol", "/api/v1/enrol/renew"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def make_authority(number: int = 42) -> Authority:
    return Authority.create(fixed_key(number), name="fleet", now_ms=now_ms() - 800 * DAY_MS)


AUTHORITY = make_authority()


def keyring(owner: PrivateKey = OWNER, **changes: Any) -> bytes:
    """A keyring file, of version 2 unless told."""
    fields = {
        "schema": SCHEMA, "version": 2, "epoch": 1, "issued": now_ms() - DAY_MS,
        "owners": [owner.public.pem.decode()], "publishers": [],
        "fleets": [fixed_key(43).public.pem.decode()], "authorities": [AUTHORITY.pem.decode()],
    }  # fmt: skip
    return sign_keyring(Keyring(**fields | changes), [owner])


@dataclass(frozen=True)
class Reply:
    """What the server answers; ``length`` may lie, and with ``hang`` the body never ends."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    hang: bool = False

    def altered(self, **changes: Any) -> Reply:
        """With other members in its JSON body; ``member`` changes what is below that.

        ``gone`` names one that is left out.
        """
        document = json.loads(self.body)
        document.pop(changes.pop("gone", None), None)
        member = changes.pop("member", None)
        if member:
            document["member"] |= member
        return replace(self, body=json.dumps(document | changes).encode())


def refusal(status: int, code: str, words: str) -> Reply:
    body = {"type": "about:blank", "title": "no", "status": status, "code": code, "detail": words}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json"})


class EnrolServer:
    """What a test can set and see.

    Attributes:
        keyring: The file that is handed out.
        pending: How many wishes of each device are answered with ``pending``.
        days: How long certificates live; negative ones have ended.
        twist: By path, what is done to a reply before it is sent.
        seen: Every (path, JSON body) in order.
        keys: The key of every wish.
    """

    def __init__(self, folder: Path, *, authority: Authority, hosts: tuple[str, ...]) -> None:
        self.authority = AUTHORITY
        self.keyring = keyring()
        self.pending = 0
        self.days = 90
        self.broker = BrokerAddress(host="broker.example", port=8883, tls=True)
        self.twist: dict[str, Callable[[Reply], Reply]] = {}
        self.seen: list[tuple[str, Any]] = []
        self.keys: list[str] = []
        self.members: dict[str, PublicKey] = {}
        self.ended = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._http.socket = _listening(self._http.socket, folder, authority, hosts)
        self.port = self._http.server_address[1]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def join(self) -> JoinString:
        return JoinString(self.url, OWNER.public.fingerprint, TOKEN)

    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    def start(self) -> None:
        self._thread = threading.Thread(target=self._http.serve_forever, args=[0.01])
        self._thread.start()

    def stop(self) -> None:
        self.ended.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def reply(self, path: str, body: bytes) -> Reply:
        self.seen.append((path, json.loads(body) if body else None))
        answers = {KEYRING: self._keyring, ENROL: self._enrol, RENEW: self._renew}
        reply = answers[path](body)
        return self.twist[path](reply) if path in self.twist else reply

    def _keyring(self, _: bytes) -> Reply:
        return Reply(200, self.keyring)

    def _enrol(self, body: bytes) -> Reply:
        wish = json.loads(body)
        asked = read_request(wish["request"].encode())
        self.keys.append(asked.key.fingerprint)
        if wish["token"] != TOKEN:
            return refusal(403, "bad-join-token", "this join token is unknown or used up")
        if self.keys.count(asked.key.fingerprint) <= self.pending:
            return _json(EnrolAnswer(status=Standing.PENDING, nonce=wish["nonce"], words="ask Ann"))
        self.members[asked.common_name] = asked.key
        member = self.member(asked.common_name, asked.key)
        answer = EnrolAnswer(status=Standing.ACCEPTED, nonce=wish["nonce"], member=member)
        return _json(answer)

    def member(self, device: str, key: PublicKey) -> Membership:
        issued = self.issue(device, key)
        return Membership(
            tenant="default", device=device, mac_key=MAC_KEY, keyring=self.keyring.decode(),
            broker=self.broker, certificate=issued.pem.decode(),
            certificate_expires=issued.expires_ms,
        )  # fmt: skip

    def issue(self, device: str, key: PublicKey) -> Any:
        begin = now_ms() - (91 * DAY_MS if self.days < 0 else 0)
        days = 91 + self.days if self.days < 0 else self.days
        return self.authority.issue_client(key, name=device, now_ms=begin, days=days)

    def _renew(self, body: bytes) -> Reply:
        claimed = json.loads(claimed_payload(body, what="renewal", max_bytes=2**20))
        renewal = open_renewal(body, self.members[claimed["device"]])
        issued = self.issue(renewal.device, self.members[renewal.device])
        answer = RenewalAnswer(
            nonce=renewal.nonce, certificate=issued.pem.decode(),
            certificate_expires=issued.expires_ms, keyring=self.keyring.decode(),
        )  # fmt: skip
        return _json(answer)


@contextmanager
def enrol_server(
    folder: Path,
    *,
    authority: Authority = AUTHORITY,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
) -> Iterator[EnrolServer]:
    """A server that runs; its own certificate is of ``authority`` and for ``hosts``."""
    server = EnrolServer(folder, authority=authority, hosts=hosts)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _json(value: object) -> Reply:
    return Reply(200, msgspec.json.encode(value), {"Content-Type": "application/json"})


def _listening(plain: Any, folder: Path, authority: Authority, hosts: tuple[str, ...]) -> Any:
    folder.mkdir(exist_ok=True)
    key, serial = PrivateKey.generate(), base64.b32encode(str(time.time_ns()).encode()).decode()
    files = folder / f"{serial}.pem", folder / f"{serial}.key"
    files[0].write_bytes(authority.issue_server(key.public, hosts=hosts, now_ms=now_ms()).pem)
    write_private_key(files[1], key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    # the handshake is made by the thread that reads, not by the one that accepts
    return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)


def _handler(server: EnrolServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, body: bytes) -> None:
            reply = server.reply(self.path, body)
            self.send_response(reply.status)
            length = reply.length if reply.length is not None else len(reply.body)
            for name, value in {"Content-Length": str(length), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            self.wfile.flush()
            if reply.hang:
                server.ended.wait()

        def log_message(self, *_: object) -> None:
            """A test has no use for a log of requests."""

    return Handler
