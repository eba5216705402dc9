"""``edgepack group``: named sets of devices."""

from __future__ import annotations

import os

import click

from edgepack_cli.client import from_environment
from edgepack_cli.output import emit_json, say, table


@click.group()
def command() -> None:
    """Create and list groups of devices."""


@command.command()
@click.argument("name")
@click.argument("devices", nargs=-1)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Every device with it.")
def create(name: str, devices: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """Create the group NAME of DEVICES, or of all devices with the labels.

    Example: edgepack group create gateways pi-1 pi-2
    """
    selector = labels_of(labels)
    from_environment(os.environ).post(
        "/groups", {"name": name, "devices": list(devices), "labels": selector}
    )
    say(f"group {name}: {', '.join(devices) or ', '.join(labels)}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_groups(*, as_json: bool) -> None:
    """List groups and their devices.

    Example: edgepack group list
    """
    groups = from_environment(os.environ).items("/groups")
    if as_json:
        emit_json({"groups": groups})
        return
    say(table(("GROUP", "DEVICES"), [(one["name"], ", ".join(one["members"])) for one in groups]))


def labels_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a dict.

    Raises:
        click.BadParameter: One has no ``=``.
    """
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
