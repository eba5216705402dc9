"""``edgepack bundle``: what the fleet can roll out."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edgepack_cli.client import from_environment
from edgepack_cli.output import bytes_text, emit_json, say, table


@click.group()
def command() -> None:
    """Push bundles to the fleet and list them."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def push(file: Path) -> None:
    """Send a signed bundle to the fleet, which verifies it before anyone can see it.

    Example: edgepack bundle push churn-1.4.0.edgepack
    """
    pushed = from_environment(os.environ).put_file("/bundles", file)
    say(f"{pushed['name']}:{pushed['version']} {pushed['digest']}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_bundles(*, as_json: bool) -> None:
    """List the bundles that the fleet has.

    Example: edgepack bundle list
    """
    bundles = from_environment(os.environ).items("/bundles")
    if as_json:
        emit_json({"bundles": bundles})
        return
    rows = [
        (one["name"], one["version"], bytes_text(one["size"]), one["digest"]) for one in bundles
    ]
    say(table(("BUNDLE", "VERSION", "SIZE", "DIGEST"), rows))
