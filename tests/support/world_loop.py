"""The whole loop, small: a broker, the fleet service and one device daemon, all real processes.

Everything is set up with the commands that a user runs.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from bad_way import BadWay
from broker_process import Broker
from world_bundles import MODEL, tiny_bundle
from world_device import Device
from world_process import Answer, Process, ask, run_to_end

from edgepack_cli.demo.ports import free_port
from edgepack_contract.keys import PrivateKey, read_private_key, read_public_key

DEVICE = "pi-1"
FLEET_CONFIG = """\
data_dir = "fleet"
[http]
port = 0
[mqtt]
port = {mqtt_port}
[keys]
fleet = "keys/fleet.key"
keyring = "keys/keyring.json"
owner = "{owner}"
[timings]
tick = 0.2
"""
SERVE = """\
[serve]
unix_socket = "serve.sock"
"""
TELEMETRY = """
[telemetry]
window_seconds = 0.5
health_seconds = 0.5
"""
# Whether a model is good is the matter of other tests: here it only has to be installed.
OPTIONS = """\
stages = ["100%"]
soak_seconds = 0.5
probation_seconds = {probation}
""" + "".join(
    f"[gates.{gate}]\nenabled = false\n"
    for gate in ("agreement", "class_mix", "confidence", "errors", "non_finite", "latency",
                 "input_drift", "accuracy")
)  # fmt: skip


class Loop:
    """Broker, fleet and device on ``folder``; the device runs 1.0.0 when this is made.

    The device comes ``to_broker`` and ``to_fleet`` by these ways, if there are any.
    """

    def __init__(
        self, folder: Path, *, to_broker: BadWay | None = None, to_fleet: BadWay | None = None
    ) -> None:
        self.folder = folder
        self.broker = Broker()
        self.port, self._mqtt_port = 0, self.broker.port
        self._fleet_environ: dict[str, str] = {}
        if to_broker is not None:
            to_broker.target, self._mqtt_port = self.broker.port, to_broker.port
        if to_fleet is not None:
            to_fleet.target = self.port = free_port()
            public = f"http://127.0.0.1:{to_fleet.port}"
            self._fleet_environ["EDGEPACK_FLEET_HTTP_PUBLIC_URL"] = public
        self._environ: dict[str, str] = {}
        self._fleet: Process | None = None
        self._device: Device | None = None
        self.cli("keys", "init", folder / "keys", "--no-passphrase")
        self.owner = read_public_key(folder / "keys" / "owner.pub").fingerprint
        self._make_fleet()
        self._start_device()
        self.push("1.0.0")
        self.roll_out("1.0.0")

    @property
    def device(self) -> Device:
        assert self._device is not None
        return self._device

    @property
    def fleet(self) -> Process:
        assert self._fleet is not None
        return self._fleet

    @property
    def fleet_url(self) -> str:
        """Where the device pulls bundles."""
        own = f"http://127.0.0.1:{self.port}"
        return self._fleet_environ.get("EDGEPACK_FLEET_HTTP_PUBLIC_URL", own)

    @property
    def trust(self) -> tuple[object, ...]:
        """The options that name keyring and owner."""
        return ("--keyring", self.folder / "keys" / "keyring.json", "--owner", self.owner)

    def key(self, role: str) -> PrivateKey:
        return read_private_key(self.folder / "keys" / f"{role}.key")

    def cli(self, *arguments: object) -> str:
        """Run ``edgepack``, which must succeed; what it printed."""
        ended = self.try_cli(*arguments)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def try_cli(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run ``edgepack``, which may fail, but not with a traceback."""
        ended = run_to_end("edgepack_cli", *arguments, **self._environ)
        assert "Traceback" not in ended.stderr
        return ended

    def api(self, path: str, method: str = "GET", body: Any = None) -> Answer:
        """Ask the fleet service, as an admin."""
        token = self._environ["EDGEPACK_TOKEN"]
        return ask(self.port, method, path, body, Authorization=f"Bearer {token}")

    def bundle(self, version: str, **options: Any) -> Path:
        """A bundle file that the publisher signed, or whoever ``signer`` is."""
        path = self.folder / f"{len(list(self.folder.glob('*.edgepack')))}.edgepack"
        tiny_bundle(path, version, **{"signer": self.key("publisher"), **options})
        return path

    def push(self, version: str) -> None:
        self.push_file(self.bundle(version))

    def push_file(self, path: Path) -> None:
        self.cli("bundle", "push", path)

    def start_rollout(self, version: str, *, probation: float) -> str:
        """Start a rollout to the one device, and return its id."""
        options = self.folder / "options.toml"
        options.write_text(OPTIONS.format(probation=probation))
        said = self.cli(
            "rollout", "start", f"{MODEL}:{version}", "--to", "all", "--options", options
        )
        return said.split()[1]

    def roll_out(self, version: str, *, probation: float = 1.0) -> None:
        self.watch(self.start_rollout(version, probation=probation))

    def watch(self, rollout: str) -> None:
        """Wait until a rollout has completed."""
        self.cli("rollout", "watch", rollout, "--timeout", 50)

    def replace_fleet(self, **environ: str) -> None:
        """End the service and start it again, with these variables beside its configuration."""
        assert self.fleet.end() == 0
        before = self.fleet.said.count("connected to the broker")
        self._start_fleet(**environ)
        self.fleet.wait_said("connected to the broker", times=before + 1)

    def told(self) -> dict[str, Any]:
        """What the fleet knows of the device."""
        view: dict[str, Any] = self.api(f"/api/v1/devices/{DEVICE}").json
        return view

    def count(self, outcome: str) -> int:
        """How many messages the fleet has counted as ``outcome``."""
        text = self.api("/metrics").body.decode()
        found = re.search(rf'edgepack_messages_total{{outcome="{outcome}"}} (\d+)', text)
        return int(found[1]) if found else 0

    def fleet_files(self) -> tuple[list[str], list[str]]:
        """The blobs in the fleet's store, and what is half received."""
        folder = self.folder / "fleet"
        blobs = sorted(path.name for path in (folder / "blobs" / "sha256").iterdir())
        return blobs, [path.name for path in (folder / "incoming").iterdir()]

    def close(self) -> None:
        if self._device is not None:
            self._device.close()
        if self._fleet is not None:
            self._fleet.kill()
        self.broker.kill()

    def _make_fleet(self) -> None:
        config = self.folder / "fleet.toml"
        config.write_text(FLEET_CONFIG.format(mqtt_port=self.broker.port, owner=self.owner))
        arguments = ("fleet", "token", "--config", config, "--name", "test", "--role", "admin")
        self._environ["EDGEPACK_TOKEN"] = self.cli(*arguments).strip().splitlines()[-1]
        self._start_fleet()

    def _start_fleet(self, **environ: str) -> None:
        config, log = self.folder / "fleet.toml", self.folder / "fleet.log"
        before = log.read_text().count("fleet ready ") if log.exists() else 0
        environ = self._fleet_environ | {"EDGEPACK_FLEET_HTTP_PORT": str(self.port)} | environ
        self._fleet = Process(log, "edgepack_cli", "fleet", "serve", "--config", config, **environ)
        self._fleet.wait_said("fleet ready ", times=before + 1)
        url = self._fleet.said.rpartition("fleet ready ")[2].split()[0]
        self.port = self.port or int(url.rsplit(":", 1)[1])
        self._environ["EDGEPACK_FLEET"] = f"http://127.0.0.1:{self.port}"

    def _start_device(self) -> None:
        home = self.folder / DEVICE
        ports = ("--port", 0, "--mqtt-port", self._mqtt_port)
        self.cli("device", "add", DEVICE, home, *self.trust, *ports)
        config = home / "device.toml"
        text = config.read_text().replace("[serve]\n", SERVE)
        config.write_text(text + TELEMETRY)
        self._device = Device(home, DEVICE, self.broker.port, self.key("fleet"))
        self._device.start()
        self.cli("group", "create", "all", DEVICE)
