"""``edgepack context``: the fleets that this user is logged in to."""

from __future__ import annotations

import os

import click

from edgepack_cli.contexts import (
    Contexts,
    contexts_path,
    read_contexts,
    write_contexts,
)
from edgepack_cli.errors import CommandError, Exit
from edgepack_cli.main import CONTEXT_VARIABLE
from edgepack_cli.output import emit_json, say, table


@click.group()
def command() -> None:
    """Choose among the fleets that you are logged in to.

    EDGEPACK_CONTEXT, or `edgepack --context NAME ...`, chooses one for a single command.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_contexts(*, as_json: bool) -> None:
    """List them; the current one has a star.

    Example: edgepack context list
    """
    contexts = _contexts()
    if as_json:
        shown = {name: _shown(contexts, name) for name in sorted(contexts.contexts)}
        emit_json({"current": contexts.current, "contexts": shown})
        return
    rows = [
        ("*" if name == contexts.current else "", name, site.url, "yes" if site.token else "no")
        for name, site in sorted(contexts.contexts.items())
    ]
    say(table(("", "CONTEXT", "FLEET", "LOGGED IN"), rows))


@command.command()
@click.argument("name")
def use(name: str) -> None:
    """Send commands to the fleet NAME from now on.

    Example: edgepack context use site
    """
    contexts = _contexts()
    site = contexts.find(name)
    write_contexts(contexts_path(os.environ), contexts.having(name, site))
    say(f"commands go to {name} ({site.url})")


@command.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str | None, *, as_json: bool) -> None:
    """Show one, or the current one, without its token.

    Example: edgepack context show
    """
    contexts = _contexts()
    name = name or os.environ.get(CONTEXT_VARIABLE) or contexts.current
    if name is None:
        raise CommandError(
            "no context is current; `edgepack login URL` makes one", exit_code=Exit.USAGE
        )
    shown = {"context": name, **_shown(contexts, name)}
    if as_json:
        emit_json(shown)
        return
    for key, value in shown.items():
        say(f"{key.replace('_', ' '):<12}{value}")


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget the fleet NAME: its address, its owner and the token.

    Example: edgepack context remove site
    """
    contexts = _contexts()
    contexts.find(name)
    write_contexts(contexts_path(os.environ), contexts.without(name))
    say(f"context {name} is removed")


def _contexts() -> Contexts:
    return read_contexts(contexts_path(os.environ))


def _shown(contexts: Contexts, name: str) -> dict[str, object]:
    site = contexts.find(name)
    trusted = "the system's authorities"
    if site.authorities:
        trusted = "the owner's keyring" if site.owner else "a file of authorities"
    return {
        "url": site.url,
        "owner": site.owner or "-",
        "trusted_by": trusted if site.url.startswith("https://") else "loopback",
        "logged_in": site.token is not None,
    }
