"""``edgepack user``: people who log in to the fleet's page."""

from __future__ import annotations

import os
from typing import Any

import click

from edgepack_cli.client import from_environment
from edgepack_cli.commands.token import day_text, limit_options, limits_text, role_option
from edgepack_cli.output import emit_json, note, say, table


@click.group()
def command() -> None:
    """Add, list, reset and remove people who log in to the fleet's page."""


@command.command()
@click.argument("name")
@role_option
@limit_options
def add(name: str, *, role: str, bundles: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Add NAME and print the address at which they choose a passkey or a password.

    The address holds a code that is good once, for 15 minutes; pass it on over a channel that you
    trust.

    Example: edgepack user add anna --role operator
    """
    body = {"name": name, "role": role, "bundles": bundles, "groups": groups}
    _show_code(from_environment(os.environ).post("/users", body))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_users(*, as_json: bool) -> None:
    """List people with how they can log in.

    Example: edgepack user list
    """
    users = from_environment(os.environ).items("/users")
    if as_json:
        emit_json({"users": users})
        return
    rows = [
        (one["name"], one["role"], limits_text(one), _ways(one), day_text(one["last_used_ms"]))
        for one in users
    ]
    say(table(("USER", "ROLE", "LIMITED TO", "LOGS IN WITH", "LAST SEEN"), rows))


@command.command()
@click.argument("name")
def reset(name: str) -> None:
    """Forget the passkeys, password and sessions of NAME, and print a new address with a code.

    Example: edgepack user reset anna
    """
    _show_code(from_environment(os.environ).post(f"/users/{name}/reset", {}))


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove NAME; every browser of theirs is logged out at once.

    Example: edgepack user remove anna
    """
    from_environment(os.environ).delete(f"/users/{name}")
    say(f"user {name} is removed")


def _show_code(made: dict[str, Any]) -> None:
    say(made["url"])
    note("good once, for 15 minutes: whoever opens it is this person")


def _ways(one: dict[str, Any]) -> str:
    ways = ["password"] if one["password"] else []
    ways += [f"{one['passkeys']} passkey{'s' * (one['passkeys'] > 1)}"] if one["passkeys"] else []
    return ", ".join(ways) or "nothing yet"
