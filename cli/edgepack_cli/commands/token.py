"""``edgepack token``: who may use the fleet's API."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from edgepack_cli.client import from_environment
from edgepack_cli.output import emit_json, say, table

SECONDS_PER_DAY = 86_400

role_option = click.option(
    "--role", type=click.Choice(["viewer", "operator", "publisher", "admin"]), default="viewer",
    show_default=True, help="What it may do.",
)  # fmt: skip


def limit_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options that limit somebody to some bundles and groups."""
    for name, words in (
        (
            "group",
            "Limit it to rollouts to groups of this pattern, such as 'gateways'; repeatable.",
        ),
        ("bundle", "Limit it to bundles of this pattern, such as 'churn-*'; repeatable."),
    ):
        option = click.option(
            f"--{name}", f"{name}s", multiple=True, default=["*"], metavar="PATTERN", help=words
        )
        function = option(function)
    return function


def limits_text(one: Mapping[str, Any]) -> str:
    """What somebody is limited to, for a column."""
    limits = [f"{kind} {','.join(one[kind])}" for kind in ("bundles", "groups")]
    return "; ".join(text for text in limits if not text.endswith(" *")) or "-"


def day_text(moment_ms: int | None) -> str:
    """A day in UTC, for a column."""
    return "-" if moment_ms is None else f"{datetime.fromtimestamp(moment_ms / 1000, UTC):%Y-%m-%d}"


@click.group()
def command() -> None:
    """Make, list and revoke access tokens of a running fleet service."""


@command.command()
@click.argument("name")
@role_option
@click.option("--days", default=90, show_default=True, help="How long it is valid.")
@limit_options
def create(
    name: str, *, role: str, days: int, bundles: tuple[str, ...], groups: tuple[str, ...]
) -> None:
    """Make a token for NAME and print it; it is never shown again.

    Example: edgepack token create ci --role publisher --bundle 'churn-*'
    """
    limits = {"bundles": bundles, "groups": groups}
    body = {"name": name, "role": role, "ttl_seconds": days * SECONDS_PER_DAY, **limits}
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
        (
            one["name"],
            one["role"],
            limits_text(one),
            day_text(one["expires_ms"]),
            day_text(one["last_used_ms"]),
        )
        for one in tokens
    ]
    say(table(("TOKEN", "ROLE", "LIMITED TO", "EXPIRES", "LAST USED"), rows))


@command.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Make the token of NAME worthless at once.

    Example: edgepack token revoke ci
    """
    from_environment(os.environ).delete(f"/tokens/{name}")
    say(f"token {name} is revoked")
