"""``edgepack token``: who may use the fleet's API."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import click

from edgepack_cli.client import from_environment
from edgepack_cli.output import emit_json, say, table

SECONDS_PER_DAY = 86_400


@click.group()
def command() -> None:
    """Make, list and revoke access tokens of a running fleet service."""


@command.command()
@click.argument("name")
@click.option(
    "--role", type=click.Choice(["viewer", "operator", "publisher", "admin"]), default="viewer",
    show_default=True, help="What it may do.",
)  # fmt: skip
@click.option("--days", default=90, show_default=True, help="How long it is valid.")
def create(name: str, *, role: str, days: int) -> None:
    """Make a token for NAME and print it; it is never shown again.

    Example: edgepack token create ci --role publisher --days 30
    """
    body = {"name": name, "role": role, "ttl_seconds": days * SECONDS_PER_DAY}
    say(from_environment(os.environ).post("/tokens", body)["token"])


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_tokens(*, as_json: bool) -> None:
    """List tokens, without their secrets.

    Example: edgepack token list
    """
    tokens = from_environment(os.environ).items("/tokens")
    if as_json:
        emit_json({"tokens": tokens})
        return
    rows = [
        (one["name"], one["role"], _day(one["expires_ms"]), _day(one["last_used_ms"]))
        for one in tokens
    ]
    say(table(("TOKEN", "ROLE", "EXPIRES", "LAST USED"), rows))


@command.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Make the token of NAME worthless at once.

    Example: edgepack token revoke ci
    """
    from_environment(os.environ).delete(f"/tokens/{name}")
    say(f"token {name} is revoked")


def _day(moment_ms: int | None) -> str:
    return "-" if moment_ms is None else f"{datetime.fromtimestamp(moment_ms / 1000, UTC):%Y-%m-%d}"
