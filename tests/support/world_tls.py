"""The whole loop over mutual TLS: Mosquitto with our files, the service, a device that enrolled.

Everything is set up with the commands that a user runs; only the API itself is plain, on loopback.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from broker_tls import HOST, Mosquitto
from world_bundles import MODEL, ROW
from world_loop import Loop
from world_process import Process, ask
from world_waiting import SECONDS

from edgepack_cli.demo.ports import free_port
from edgepack_contract.keys import read_public_key

DEVICE = "pi-1"
FLEET_CONFIG = """\
data_dir = "fleet"
[http]
port = {http_port}
[mqtt]
host = "{host}"
port = {mqtt_port}
tls_ca = "mosquitto/ca.pem"
client_certificate = "mosquitto/fleet-client.pem"
client_key = "mosquitto/fleet-client.key"
crl_file = "mosquitto/crl.pem"
broker_pid_file = "mosquitto.pid"
[keys]
fleet = "keys/fleet.key"
keyring = "keys/keyring.json"
owner = "{owner}"
authority = "keys/authority.key"
authority_certificate = "keys/authority.pem"
[timings]
tick = 0.2
"""
SERVE = '[serve]\nunix_socket = "serve.sock"\n'


class TlsLoop(Loop):
    """Broker and fleet on ``folder``, and a device that has joined by a join string and runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environ: dict[str, str] = {}
        self._fleet = self._device = None
        self.daemon: Process | None = None
        self.home = folder / DEVICE
        self.cli("keys", "init", folder / "keys", "--no-passphrase")
        self.owner = read_public_key(folder / "keys" / "owner.pub").fingerprint
        port, out = free_port(), folder / "mosquitto"
        config = folder / "fleet.toml"
        self.port = free_port()  # the service is restarted, and has to be found again
        values = {"host": HOST, "mqtt_port": port, "http_port": self.port, "owner": self.owner}
        config.write_text(FLEET_CONFIG.format(**values))
        self.cli("fleet", "mqtt-config", "--config", config, "--host", HOST, "--port", port,
                 "--out", out)  # fmt: skip
        self.mosquitto = Mosquitto(folder, out, port)
        self._serve(config)

    def join(self, name: str = DEVICE) -> None:
        """Enrol with a token that accepts at once."""
        body = {"name": f"for-{name}", "mode": "auto"}
        token = self._environ["EDGEPACK_TOKEN"]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        made = ask(self.port, "POST", "/api/v1/join-tokens", body, **headers)
        assert made.status == 201, made.body
        (secret,) = re.findall(r'"(epj_[^"]+)"', made.body.decode())
        join = f"http://{HOST}:{self.port}#{self.owner}:{secret}\n"
        command = [sys.executable, "-m", "edgepack_cli", "enrol", str(self.folder / name),
                   "--device", name, "--port", "0"]  # fmt: skip
        done = subprocess.run(
            command, input=join, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr

    def run_device(self) -> None:
        """Start the daemon, and wait until the broker has let it in."""
        config = self.home / "device.toml"
        config.write_text(config.read_text().replace("[serve]\n", SERVE))
        self.daemon = Process(self.folder / "daemon.log", "edgepack_cli", "run", "--config", config)
        self.daemon.wait_said("connected to the broker")

    def predicts(self) -> bool:
        where = self.home / "serve.sock"
        path = f"/v1/models/{MODEL}:predict"
        return ask(where, "POST", path, {"instances": [ROW]}).status == 200

    def close(self) -> None:
        for process in (self.daemon, self._fleet):
            if process is not None:
                process.kill()
        self.mosquitto.kill()

    def _serve(self, config: Path) -> None:
        arguments = ("fleet", "token", "--config", config, "--name", "test", "--role", "admin")
        self._environ["EDGEPACK_TOKEN"] = self.cli(*arguments).strip().splitlines()[-1]
        self._fleet = Process(
            self.folder / "fleet.log", "edgepack_cli", "fleet", "serve", "--config", config
        )
        self._environ["EDGEPACK_FLEET"] = f"http://{HOST}:{self.port}"
        self.wait_fleet()

    def restart_fleet(self) -> None:
        """Start the service that was killed or ended, and wait until it is at work."""
        self.fleet.log.unlink()
        self.fleet.start()
        self.wait_fleet()

    def wait_fleet(self) -> None:
        self.fleet.wait_said("fleet ready ")
        self.fleet.wait_said("connected to the broker")
