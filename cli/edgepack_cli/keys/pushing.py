"""``edgepack keys keyring push`` and ``status``: the keyring that the fleet service goes by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgepack_cli.client import from_environment
from edgepack_cli.output import emit_json, note, say
from edgepack_cli.trust import FILE
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small


@click.command()
@click.argument("file", type=FILE)
def push(file: Path) -> None:
    """Put a newer keyring in force at the fleet service, which hands it to every device.

    Example: edgepack keys keyring push keys/keyring.json
    """
    client = from_environment(os.environ)
    said = client.put_bytes("/keyring", read_small(file, LIMITS.keyring_bytes))
    say(f"keyring version {said['version']} of epoch {said['epoch']} is in force")
    note(_words(client.get("/keyring/status")))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(*, as_json: bool) -> None:
    """Say which keyring the fleet service goes by, and how many devices do so already.

    Example: edgepack keys keyring status
    """
    found = from_environment(os.environ).get("/keyring/status")
    if as_json:
        emit_json(found)
        return
    keyring = found["keyring"]
    say(f"version    {keyring['version']}, epoch {keyring['epoch']}")
    say(f"owner      {keyring['owner']}")
    say(f"fleet key  {keyring['fleet_key']}")
    say(f"devices    {_words(found)}")


def _words(status: dict[str, Any]) -> str:
    newest = status["keyring"]["version"]
    others = [
        f"{count} by version {version}" if version != "0" else f"{count} have not said"
        for version, count in status["versions"].items()
        if version != str(newest)
    ]
    rest = f" ({', '.join(others)})" if others else ""
    return f"{status['newest']} of {status['devices']} go by version {newest}{rest}"
