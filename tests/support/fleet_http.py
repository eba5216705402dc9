"""A fleet API over a real database and store, without broker or controller, for tests."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from bundle_samples import PUBLISHER, fixed_key, one_variant
from fastapi import FastAPI

from edgepack_contract.certificates import Authority
from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.layout import write_bundle
from edgepack_contract.sealing import derived_secret
from edgepack_fleet.api.app import build_app
from edgepack_fleet.api.context import Context
from edgepack_fleet.bundles import BundleStore
from edgepack_fleet.config import FleetConfig, KeysConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.desired import DesiredWriter
from edgepack_fleet.devices import add_device
from edgepack_fleet.tokens import Role, create_token
from edgepack_fleet.trust import KeyringKeeper, read_trust

HOST = "http://127.0.0.1:8080"
START_MS = 1_780_000_000_000
FLEET_KEY = fixed_key(3)
AUTHORITY_KEY = fixed_key(6)
OWNER = fixed_key(4)
MAC_KEY = bytes(range(32))


@dataclass
class Clock:
    """A clock that tests set."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms


@dataclass(frozen=True)
class Client:
    """Sends requests to the application itself, without a socket.

    An error that escapes the application is answered as a server would answer it.
    """

    app: FastAPI
    headers: dict[str, str]

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request."""
        headers = self.headers | options.pop("headers", {})
        return asyncio.run(self._send(method, path, headers=headers, **options))

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
            return await client.request(method, path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **options)

    def head(self, path: str, **options: Any) -> httpx.Response:
        """HEAD."""
        return self.request("HEAD", path, **options)

    def put(self, path: str, **options: Any) -> httpx.Response:
        """PUT."""
        return self.request("PUT", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", path, **options)


@dataclass
class Fleet:
    """The application and what it stands on; ``tokens`` has one for every role."""

    app: FastAPI
    context: Context
    clock: Clock
    folder: Path
    tokens: dict[str, str]
    stopping: threading.Event = field(default_factory=threading.Event)

    def client(self, role: str | None = None, **headers: str) -> Client:
        """A client with the token of a role, or without credentials."""
        if role is not None:
            headers["Authorization"] = f"Bearer {self.tokens[role]}"
        return Client(self.app, headers)

    def add_device(self, device: str, **labels: str) -> None:
        """Accept a device with a new key and the MAC key that all test devices have."""
        with self.context.database.write() as session:
            add_device(
                session,
                tenant="default",
                device=device,
                public_key_pem=PrivateKey.generate().public.pem.decode(),
                mac_key_hex=MAC_KEY.hex(),
                labels=labels,
                now_ms=self.clock(),
            )

    def push(self, path: Path) -> Any:
        """Push a bundle file as the publisher."""
        return self.client("publisher").put("/api/v1/bundles", content=path.read_bytes())


def make_keys(folder: Path) -> KeysConfig:
    """The keys of a service in its folder: the owner names one publisher and one fleet key."""
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    if not (folder / "fleet.key").exists():
        write_private_key(folder / "fleet.key", FLEET_KEY)
        write_private_key(folder / "authority.key", AUTHORITY_KEY)
        authority = Authority.create(AUTHORITY_KEY, name="a test fleet", now_ms=START_MS)
        (folder / "authority.pem").write_bytes(authority.pem)
    file = make_keyring(
        OWNER, version=1, epoch=1, publishers=[publisher], fleets=[FLEET_KEY.public],
        authorities=[(folder / "authority.pem").read_text()],
    )  # fmt: skip
    (folder / "keyring.json").write_bytes(file)
    return KeysConfig(
        fleet=str(folder / "fleet.key"),
        keyring=str(folder / "keyring.json"),
        owner=OWNER.public.fingerprint,
        authority=str(folder / "authority.key"),
        authority_certificate=str(folder / "authority.pem"),
    )


@contextmanager
def open_fleet(folder: Path, *, now_ms: int = START_MS) -> Iterator[Fleet]:
    """A fleet API on ``folder`` whose clock stands at ``now_ms``."""
    config = FleetConfig(data_dir=str(folder), keys=make_keys(folder))
    clock, stopping = Clock(now_ms), threading.Event()
    database = Database(config.database_url)
    try:
        keeper = KeyringKeeper(config, database, read_trust(config.keys), refuse=lambda _: None)
        store = BundleStore(folder, database, lambda: keeper.trust.keyring)
        store.prepare()
        writer = DesiredWriter(
            tenant=config.tenant,
            trusted=lambda: keeper.trust,
            base_url=HOST,
            ttl_ms=7 * 86_400_000,
            refresh_ms=86_400_000,
        )
        context = Context(
            config=config,
            database=database,
            bundles=store,
            writer=writer,
            keeper=keeper,
            wake=lambda: None,
            now_ms=clock,
            is_stopping=stopping.is_set,
            counters=dict,
        )
        tokens = {}
        with database.write() as session:
            for role in (Role.VIEWER, Role.OPERATOR, Role.PUBLISHER, Role.ADMIN):
                tokens[role.value] = create_token(
                    session, name=role.value, role=role, now_ms=clock()
                )
        yield Fleet(build_app(context), context, clock, folder, tokens, stopping)
    finally:
        database.close()


def bundle_file(folder: Path, *, signer: PrivateKey | None = PUBLISHER, **changes: Any) -> Path:
    """A small bundle in a file; ``changes`` are those of its description."""
    name = "-".join(str(value) for value in changes.values()) or "bundle"
    path = folder / f"{name}.edgepack"
    write_bundle(path, one_variant(**changes), signer=signer, evidence={"report.json": b"{}"})
    return path


def basic(user: str, password: str) -> str:
    """A Basic ``Authorization`` header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def device_header(device: str) -> str:
    """The header with which a test device pulls."""
    return basic(device, derived_secret(MAC_KEY, "pull"))


@contextmanager
def served(fleet: Fleet, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """The application behind a real server on a free port; gives its address.

    With ``tls``, a certificate for ``localhost`` and its key, it is an address of https.
    """
    certificate, key = tls or (None, None)
    config = uvicorn.Config(
        fleet.app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1,
        ssl_certfile=certificate, ssl_keyfile=key,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the server did not start")
        thread.join(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    finally:
        fleet.stopping.set()
        server.should_exit = True
        thread.join(30)
