"""The demo's world: its folder, its keys and configurations, and its processes.

Everything lives in one temporary folder and listens on loopback only.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgepack_cli.client import FleetClient
from edgepack_cli.demo.clients import DeviceClient, UnixConnection
from edgepack_cli.demo.data import Digits, Release
from edgepack_cli.demo.ports import free_port
from edgepack_cli.demo.supervisor import Child, Supervisor
from edgepack_cli.errors import Exit
from edgepack_cli.main import run
from edgepack_contract.keys import read_public_key

MODEL = "digits"
GROUP = "gateways"
WINDOW_SECONDS = 1.0
PROBATION_SECONDS = 4.0
SOAK_SECONDS = 8.0
REQUESTS_PER_SECOND = 40.0
START_SECONDS = 30.0

FLEET_CONFIG = """\
data_dir = "fleet"

[http]
port = {http_port}

[mqtt]
port = {mqtt_port}
protocol = "3.1.1"

[keys]
fleet = "keys/fleet.key"
keyring = "keys/keyring.json"
owner = "{owner}"

[timings]
tick = 0.25
"""
DEVICE_CONFIG = """
[telemetry]
window_seconds = {window}
health_seconds = 5.0
"""


class DemoFailedError(Exception):
    """The demo did not come true; the message says which part and why."""


class World:
    """Builds and holds what the story needs.

    Args:
        folder: An empty folder.
        devices: How many device daemons.
        seed: For the clients' permutations.
    """

    def __init__(self, folder: Path, *, devices: int, seed: int) -> None:
        self.folder = folder
        self.device_names = [f"gateway-{number}" for number in range(1, devices + 1)]
        self.clients: list[DeviceClient] = []
        self.devices: dict[str, Child] = {}
        self._seed = seed
        self.http_port, self.mqtt_port = free_port(), free_port()
        self.supervisor = Supervisor(os.environ)
        self.fleet: FleetClient | None = None
        self.fleet_child: Child | None = None

    @property
    def api(self) -> FleetClient:
        """The fleet's API, once it runs."""
        if self.fleet is None:
            raise RuntimeError("the fleet service has not been started")
        return self.fleet

    @property
    def address(self) -> str:
        """Where the fleet service listens."""
        return f"http://127.0.0.1:{self.http_port}"

    def make_keys(self) -> None:
        """Owner, publisher and fleet keys, for this demo only."""
        command("keys", "init", str(self.folder / "keys"), "--demo", "--names", MODEL)

    def start_services(self) -> None:
        """Start the broker, make one token, and start the fleet service."""
        config = self.folder / "fleet.toml"
        config.write_text(
            FLEET_CONFIG.format(
                http_port=self.http_port, mqtt_port=self.mqtt_port, owner=self._owner()
            ),
            encoding="utf-8",
        )
        broker = self._child(
            "broker", ["-m", "edgepack_cli.demo.broker", str(self.mqtt_port)],
            lambda: _listens(self.mqtt_port),
        )  # fmt: skip
        self.supervisor.start(broker)
        arguments = ("--config", str(config), "--name", "demo", "--role", "admin")
        token = _output("fleet", "token", *arguments).strip().splitlines()[-1]
        self.fleet = FleetClient(self.address, token)
        os.environ["EDGEPACK_FLEET"], os.environ["EDGEPACK_TOKEN"] = self.address, token
        self.fleet_child = self._child(
            "fleet",
            ["-m", "edgepack_cli", "fleet", "serve", "--config", str(config)],
            self._healthy,
        )
        self.supervisor.start(self.fleet_child)
        self.supervisor.wait_ready([broker, self.fleet_child], seconds=START_SECONDS)

    def start_devices(self) -> None:
        """Add every device to the fleet and start its daemon."""
        keyring = str(self.folder / "keys" / "keyring.json")
        for name in self.device_names:
            home = self.folder / name
            command(
                "device", "add", name, str(home), "--keyring", keyring, "--owner", self._owner(),
                "--port", "0", "--mqtt-port", str(self.mqtt_port),
            )  # fmt: skip
            self._configure(home)
            child = self._child(
                name, ["-m", "edgepack_cli", "run", "--config", str(home / "device.toml")],
                partial(_answers, home / "serve.sock", "/v2/health/live"),
            )  # fmt: skip
            child.is_back = partial(self.serves, name)
            self.devices[name] = self.supervisor.start(child)
        command("group", "create", GROUP, *self.device_names)
        self.supervisor.wait_ready(list(self.devices.values()), seconds=START_SECONDS)

    def start_client(self, device: str, digits: Digits) -> DeviceClient:
        """Begin to ask one device."""
        client = DeviceClient(
            device,
            self.folder / device / "serve.sock",
            model=MODEL,
            rows=digits.device_rows,
            labels=digits.device_labels,
            rate=REQUESTS_PER_SECOND,
            rng=random.Random(f"{self._seed}:{device}"),  # noqa: S311 - a repeatable walk
        )
        client.start()
        self.clients.append(client)
        return client

    def serves(self, device: str) -> bool:
        """Whether a device has a model that answers."""
        return _answers(self.folder / device / "serve.sock", "/v2/health/ready")

    def build(self, release: Release) -> str:
        """Run ``edgepack build`` for one release and return what it prints."""
        bundle = self.bundle_path(release.version)
        labels = ["--label", "digit"] if release.labelled else []
        return command(
            "build", str(release.model), "--name", MODEL, "--version", release.version,
            "--data", str(release.data), *labels, "--max-drop", "1pt",
            "--key", str(self.folder / "keys" / "publisher.key"), "-o", str(bundle),
        )  # fmt: skip

    def bundle_path(self, version: str) -> Path:
        """The file of one version."""
        return self.folder / f"{MODEL}-{version}.edgepack"

    def stop(self) -> None:
        """Stop clients and processes."""
        for client in self.clients:
            client.stop()
        self.supervisor.stop()

    def _owner(self) -> str:
        return read_public_key(self.folder / "keys" / "owner.pub").fingerprint

    def _configure(self, home: Path) -> None:
        path = home / "device.toml"
        text = path.read_text(encoding="utf-8")
        text = text.replace("[serve]\n", '[serve]\nunix_socket = "serve.sock"\n')
        path.write_text(text + DEVICE_CONFIG.format(window=WINDOW_SECONDS), encoding="utf-8")

    def _child(self, name: str, arguments: list[str], is_ready: Callable[[], bool]) -> Child:
        log = self.folder / f"{name}.log"
        return Child(name, [sys.executable, *arguments], log, is_ready)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=2)
        return _get(connection, "/healthz") == 200


def command(*arguments: str) -> str:
    """Run an ``edgepack`` command in this process and return what it printed.

    Raises:
        DemoFailedError: It failed.
        KeyboardInterrupt: It was interrupted, and so is the demo.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
    if code == Exit.INTERRUPTED:
        raise KeyboardInterrupt
    if code != 0:
        raise DemoFailedError(f"edgepack {' '.join(arguments)} ended with {code}: {err.getvalue()}")
    return out.getvalue()


def _output(*arguments: str) -> str:
    process = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "edgepack_cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        raise DemoFailedError(
            f"edgepack {' '.join(arguments)} ended with {process.returncode}:\n{process.stderr}"
        )
    return process.stdout


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _answers(path: Path, url: str) -> bool:
    return _get(UnixConnection(path), url) == 200


def _get(connection: http.client.HTTPConnection, url: str) -> int:
    try:
        connection.request("GET", url)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
