"""``edgepack device``: add devices and look at them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from edgepack_cli.client import from_environment
from edgepack_cli.commands.group import labels_of
from edgepack_cli.keys.folder import check_new
from edgepack_cli.output import emit_json, note, say, table
from edgepack_contract.keyring import open_keyring
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import check_id
from edgepack_contract.sealing import MAC_KEY_BYTES

CONFIG = """\
device = "{device}"
state_dir = "state"

[identity]
key = "device.key"
mac_key = "mac.key"
keyring = "keyring.json"
owner = "{owner}"

[serve]
host = "127.0.0.1"
port = {port}

[mqtt]
host = "127.0.0.1"
port = {mqtt_port}
"""


@click.group()
def command() -> None:
    """Add and look at devices."""


@command.command()
@click.argument("device")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--keyring", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True,
    help="The keyring that the owner signed.",
)  # fmt: skip
@click.option("--owner", required=True, help="Fingerprint of the owner key, which is pinned.")
@click.option("--port", default=8000, show_default=True, help="Where the device serves.")
@click.option("--mqtt-port", default=1883, show_default=True, help="Port of the broker.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")
def add(
    device: str, folder: Path, *, keyring: Path, owner: str, port: int, mqtt_port: int,
    labels: tuple[str, ...],
) -> None:  # fmt: skip
    """Make an identity for DEVICE in FOLDER and tell the fleet about it.

    Move FOLDER to the device and start the daemon there: edgepack run --config FOLDER/device.toml

    Example: edgepack device add pi-1 pi-1 --keyring keys/keyring.json --owner 3f9a...
    """
    check_id(device, what="device")
    raw = keyring.read_bytes()[: LIMITS.keyring_bytes + 1]
    open_keyring(raw, owner_fingerprint=owner)
    # Before the fleet hears of the device: it would wait for one whose keys nobody has.
    check_new(folder / name for name in ("device.key", "mac.key"))
    key, mac_key = PrivateKey.generate(), secrets.token_bytes(MAC_KEY_BYTES)
    body = {
        "id": device,
        "public_key": key.public.pem.decode(),
        "mac_key": mac_key.hex(),
        "labels": labels_of(labels),
    }
    from_environment(os.environ).post("/devices", body)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private_key(folder / "device.key", key)
    (folder / "keyring.json").write_bytes(raw)
    _write_secret(folder / "mac.key", mac_key.hex())
    config = CONFIG.format(device=device, owner=owner, port=port, mqtt_port=mqtt_port)
    (folder / "device.toml").write_text(config, encoding="utf-8")
    say(f"device {device}")
    note(f"start it with: edgepack run --config {folder}/device.toml")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_devices(*, as_json: bool) -> None:
    """List devices with what they run.

    Example: edgepack device list
    """
    devices = from_environment(os.environ).items("/devices")
    if as_json:
        emit_json({"devices": devices})
        return
    say(table(("DEVICE", "PRESENCE", "SLOT", "VERSION", "PHASE", "WHY"), _rows(devices)))


@command.command()
@click.argument("device")
def why(device: str) -> None:
    """Say in words what a device runs, and why.

    Example: edgepack device why pi-1
    """
    say(from_environment(os.environ).get(f"/devices/{device}/why")["why"])


def _rows(devices: list[dict[str, object]]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for device in devices:
        slots = device.get("slots")
        if not isinstance(slots, dict) or not slots:
            rows.append((device["id"], device["presence"], "-", "-", "-", ""))
            continue
        rows += [
            (
                device["id"],
                device["presence"],
                name,
                slot["version"] or "-",
                slot["phase"],
                slot["words"],
            )
            for name, slot in sorted(slots.items())
        ]
    return rows


def _write_secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
