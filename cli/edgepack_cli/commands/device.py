"""``edgepack device``: who is in the fleet, what they run, and who may come in."""

from __future__ import annotations

import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from edgepack_cli.client import from_environment
from edgepack_cli.commands.group import labels_of
from edgepack_cli.errors import CommandError
from edgepack_cli.keys.folder import check_new
from edgepack_cli.output import emit_json, note, say, table
from edgepack_contract.keyring import open_keyring
from edgepack_contract.keys import PrivateKey, read_public_key, write_private_key
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

CLONE_WORDS = "a second machine with its identity was heard"
FINGERPRINT = re.compile(r"\A[0-9a-f]{64}\Z")
LEAST_DIGITS = 16
"""64 bits: nobody makes keys until one begins alike."""


@click.group()
def command() -> None:
    """Look at devices, let them in, and put them out."""


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


@command.command()
@click.argument("device")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(device: str, *, as_json: bool) -> None:
    """Show one device: who it is, when it was heard, what it runs, what it refused.

    Example: edgepack device show pi-1
    """
    found = from_environment(os.environ).get(f"/devices/{device}")
    if as_json:
        emit_json(found)
        return
    for name, value in shown(found):
        say(f"{name:<13}{value}".rstrip())


@command.command()
@click.argument("device")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
def label(device: str, changes: tuple[str, ...]) -> None:
    """Set labels of DEVICE, or remove them with KEY-; the others stay.

    Example: edgepack device label pi-1 site=oslo hall-
    """
    client = from_environment(os.environ)
    labels = dict(client.get(f"/devices/{device}")["labels"])
    for change in changes:
        if "=" not in change and change.endswith("-"):
            labels.pop(change[:-1], None)
        else:
            labels |= labels_of((change,))
    found = client.post(f"/devices/{device}/labels", {"labels": labels})["labels"]
    say(f"device {device}: {pairs(found) or 'no labels'}")


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pending(*, as_json: bool) -> None:
    """List who waits to join, and who was rejected, with the keys to compare.

    Example: edgepack device pending
    """
    waiting = from_environment(os.environ).items("/enrolments")
    if as_json:
        emit_json({"enrolments": waiting})
        return
    rows = [
        (
            one["device"],
            one["status"],
            moment(one["asked_ms"]),
            one["token"],
            one["key"],
            pairs(one["labels"]),
        )
        for one in waiting
    ]
    say(table(("DEVICE", "STATUS", "ASKED", "JOIN TOKEN", "KEY", "LABELS"), rows))


@command.command()
@click.argument("device")
@click.option(
    "--key", "shown_key", metavar="FINGERPRINT",
    help="What the device shows as its key, at least its first 16 digits: approved without asking.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Approve whatever key it is.")
def approve(device: str, *, shown_key: str | None, yes: bool) -> None:
    """Let the device in that waits as DEVICE, after comparing its key.

    Example: edgepack device approve pi-1 --key 3f9a04c1d2e8b6a7
    """
    client = from_environment(os.environ)
    waiting = client.get(f"/enrolments/{device}")
    key = waiting["key"]
    if shown_key is not None:
        _compare(device, key, shown_key)
    elif not yes:
        note(f"{device} asks with key\n  {key}\nand gets the labels {pairs(waiting['labels'])}")
        click.confirm("Does the device show the same key?", abort=True, err=True)
    client.post(f"/enrolments/{device}/approve", {"key": key})
    say(f"device {device} is accepted")


@command.command()
@click.argument("device")
def reject(device: str) -> None:
    """Refuse the device that waits to join as DEVICE.

    Example: edgepack device reject pi-1
    """
    from_environment(os.environ).post(f"/enrolments/{device}/reject", {})
    say(f"device {device} is rejected")


@command.command()
@click.argument("device")
def revoke(device: str) -> None:
    """End the membership of DEVICE at once: stolen, copied, or not to be trusted.

    The fleet signs nothing more for it, hears it no more and serves it no bundle; the broker drops
    it within a minute. What it runs goes on running. With a new key it can enrol again.

    Example: edgepack device revoke pi-1
    """
    from_environment(os.environ).post(f"/devices/{device}/revoke", {})
    say(f"device {device} is revoked")
    note("to let it in again: edgepack join-token create NAME, and edgepack enrol --again there")


@command.command()
@click.argument("device")
@click.option("--yes", is_flag=True, help="Do not ask.")
def decommission(device: str, *, yes: bool) -> None:
    """End the membership of DEVICE for good, and clear what the broker keeps of it.

    Its telemetry and its place in the audit log stay.

    Example: edgepack device decommission pi-1
    """
    if not yes:
        click.confirm(f"Decommission {device} for good?", abort=True, err=True)
    from_environment(os.environ).post(f"/devices/{device}/decommission", {})
    say(f"device {device} is decommissioned")


@command.command()
@click.argument("device")
@click.option(
    "--key", required=True, metavar="FINGERPRINT|FILE",
    help="The key's fingerprint, or the device.pub of `edgepack enrol --make-key`.",
)  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")
def preauthorise(device: str, *, key: str, labels: tuple[str, ...]) -> None:
    """Announce that DEVICE will ask with this key: it is let in without waiting.

    It still needs a join string, of any kind.

    Example: edgepack device preauthorise pi-1 --key pi-1/device.pub
    """
    fingerprint = key if FINGERPRINT.match(key) else read_public_key(Path(key)).fingerprint
    body = {"device": device, "key": fingerprint, "labels": labels_of(labels)}
    from_environment(os.environ).post("/preauthorised", body)
    say(f"device {device} is expected with key {fingerprint}")


def shown(device: dict[str, Any]) -> list[tuple[str, str]]:
    """A device as lines of a name and a value."""
    refused = ", ".join(f"{why} {count}" for why, count in device["refused_messages"].items())
    clone, certificate = device["clone_seen_ms"], device["certificate_expires_ms"]
    lines = [
        ("device", device["id"]),
        ("status", device["status"]),
        ("presence", device["presence"]),
        ("last seen", moment(device["last_seen_ms"])),
        ("labels", pairs(device["labels"]) or "-"),
        ("hardware", device["hardware_class"]),
        ("key", device["enrolment"]),
        ("certificate", f"until {moment(certificate)}" if certificate else "none"),
        ("keyring", f"version {device['keyring_seen']}" if device["keyring_seen"] else "-"),
        ("told", f"generation {device['generation_desired']}"),
        ("obeys", f"generation {device['generation_seen']}"),
    ]
    for name, slot in sorted(device["slots"].items()):
        lines.append((f"slot {name}", f"{slot['version'] or '-'} {slot['phase']} {slot['words']}"))
        if slot.get("candidate"):
            lines.append((f"slot {name}", candidate_words(slot["candidate"])))
    if device["refused"]:
        lines.append(("refused", device["refused"]))
    if clone:
        lines.append(("copy", f"{CLONE_WORDS}, last at {moment(clone)}"))
    if refused:
        lines.append(("messages", f"refused since the service started: {refused}"))
    return lines


def candidate_words(candidate: dict[str, Any]) -> str:
    """A candidate on one line, as a device reports it."""
    version = candidate["version"] or (candidate["wanted"] or "-").removeprefix("sha256:")[:12]
    told = f"beside it {version} {candidate['mode']} {100 * candidate['share']:g} %"
    return f"{told} {candidate['phase']} {candidate['words']}".rstrip()


def pairs(labels: dict[str, str]) -> str:
    """Labels on one line."""
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def moment(ms: int | None) -> str:
    """A time for people, in UTC."""
    return "-" if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%SZ}"


def _compare(device: str, key: str, shown_key: str) -> None:
    said = shown_key.strip().lower()
    if len(said) < LEAST_DIGITS or not key.startswith(said):
        raise CommandError(
            f"{device} asks with key {key}, which is not the one given ({said[:80]}); give at "
            f"least {LEAST_DIGITS} digits of what the device shows. If it shows this key, this is "
            f"not that device: edgepack device reject {device}",
            code="other-key",
        )


def _rows(devices: list[dict[str, object]]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for device in devices:
        if device["status"] != "accepted":
            rows.append((device["id"], device["status"], "-", "-", "-", ""))
            continue
        if device["clone_seen_ms"] is not None:
            rows.append((device["id"], "copied", "-", "-", "-", CLONE_WORDS))
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
        rows += [
            (device["id"], device["presence"], name, "", "", candidate_words(slot["candidate"]))
            for name, slot in sorted(slots.items())
            if slot.get("candidate")
        ]
    return rows


def _write_secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
