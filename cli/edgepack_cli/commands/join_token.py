"""``edgepack join-token``: the right of devices to join."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgepack_cli.client import FleetClient, from_environment
from edgepack_cli.commands.device import moment, pairs
from edgepack_cli.commands.group import labels_of
from edgepack_cli.errors import CommandError, Exit
from edgepack_cli.output import emit_json, note, say, table
from edgepack_contract.enrolment import JoinString, parse_join_string
from edgepack_contract.keyring import claimed_keyring, keyring_lines, open_keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small

SECONDS_PER_HOUR = 3600


@click.group()
def command() -> None:
    """Make, list and revoke join tokens, with which devices ask to join the fleet."""


@command.command()
@click.argument("name")
@click.option("--auto", is_flag=True, help="Let devices in without an operator's approval.")
@click.option("--uses", default=1, show_default=True, help="For how many devices.")
@click.option("--hours", default=1.0, show_default=True, help="How long it is valid.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label for them.")
@click.option("--owner", help="Fingerprint of the owner to pin.  [default: that of your login]")
@click.option(
    "--keyring", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Take the owner from this keyring file, which you trust.",
)  # fmt: skip
@click.option("--url", help="Where devices reach the fleet.  [default: where you do]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def create(
    name: str, *, auto: bool, uses: int, hours: float, labels: tuple[str, ...], owner: str | None,
    keyring: Path | None, url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make the token NAME and print its join string; it is never shown again.

    The join string names the fleet, its owner, and the token: whoever has it can ask to join.

    Example: edgepack join-token create gateways --auto --uses 50 --hours 2 --label site=oslo
    """
    client = from_environment(os.environ)
    pinned = owner or _owner(keyring, client)
    # before the token exists: one whose join string is malformed could not be shown again
    parse_join_string(str(JoinString(url or client.url, pinned, "epj_" + "x" * 49)))
    body = {
        "name": name,
        "mode": "auto" if auto else "pending",
        "max_uses": uses,
        "ttl_seconds": round(hours * SECONDS_PER_HOUR),
        "labels": labels_of(labels),
    }
    made = client.post("/join-tokens", body)
    join = str(JoinString((url or client.url).rstrip("/"), pinned, made["token"]))
    if as_json:
        emit_json({key: value for key, value in made.items() if key != "token"} | {"join": join})
        return
    say(join)
    note(_words(made))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_tokens(*, as_json: bool) -> None:
    """List join tokens, without their secrets.

    Example: edgepack join-token list
    """
    tokens = from_environment(os.environ).items("/join-tokens")
    if as_json:
        emit_json({"tokens": tokens})
        return
    rows = [
        (
            one["name"],
            one["mode"],
            f"{one['uses']} of {one['max_uses']}",
            moment(one["expires_ms"]),
            one["created_by"],
            pairs(one["labels"]),
        )
        for one in tokens
    ]
    say(table(("JOIN TOKEN", "MODE", "USED", "EXPIRES", "MADE BY", "LABELS"), rows))


@command.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Make the join token NAME worthless at once. Devices that have joined with it stay.

    Example: edgepack join-token revoke gateways
    """
    from_environment(os.environ).delete(f"/join-tokens/{name}")
    say(f"join token {name} is revoked")


def _owner(keyring: Path | None, client: FleetClient) -> str:
    """The owner to pin, from this machine and never from the server.

    A server that could name the owner could name itself.
    """
    if keyring is not None:
        raw = read_small(keyring, LIMITS.keyring_bytes)
        newest, _ = claimed_keyring(keyring_lines(raw)[-1])
        return open_keyring(raw, owner_fingerprint=newest.owner_fingerprint).owner_fingerprint
    if client.owner is not None:
        return client.owner
    raise CommandError(
        "a join string names the owner that devices pin, and it is not asked of the service: give "
        "--owner FINGERPRINT (edgepack keys show prints it), --keyring FILE, or log in with: "
        "edgepack login URL --owner FINGERPRINT",
        exit_code=Exit.USAGE,
    )


def _words(made: dict[str, Any]) -> str:
    devices = "one device" if made["max_uses"] == 1 else f"up to {made['max_uses']} devices"
    then = (
        "they are let in at once, but an id that was revoked waits for edgepack device approve"
        if made["mode"] == "auto"
        else "each waits for edgepack device approve"
    )
    return (
        f"valid until {moment(made['expires_ms'])} for {devices}; {then}\n"
        "on the device: edgepack enrol FOLDER, and give it this line on its standard input\n"
        "it is a secret: send it as you would a password"
    )
