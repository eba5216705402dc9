"""``edgepack rollout``: bring a bundle to a group in stages, and back."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgepack_cli.client import FleetClient, from_environment
from edgepack_cli.errors import Exit, FleetUnreachableError
from edgepack_cli.output import emit_json, note, say, table
from edgepack_cli.rollout_view import render_plan, render_rollout
from edgepack_contract.settings import read_toml

F = TypeVar("F", bound=Callable[..., Any])

POLL_SECONDS = 0.5
AWAY_SECONDS = 120.0
"""A fleet service that is being restarted comes back; one that was there before is waited for."""
EXITS = {
    "completed": Exit.OK,
    "completed_with_failures": Exit.ROLLED_BACK,
    "aborted": Exit.ROLLED_BACK,
    "rolled_back": Exit.ROLLED_BACK,
    "rollback_incomplete": Exit.ROLLED_BACK,
    "paused": Exit.PAUSED,
}


@click.group()
def command() -> None:
    """Roll a bundle out in stages, watch, roll back."""


def _what_and_where(function: F) -> F:
    """The parameters that a rollout and its plan share."""
    function = click.option(
        "--options", "options_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="A TOML file with rollout options; without it every default is safe.",
    )(function)  # fmt: skip
    function = click.option("--to", "group", required=True, help="The group of devices.")(function)
    return click.argument("bundle", metavar="NAME:VERSION")(function)


def _body(bundle: str, group: str, options_file: Path | None) -> dict[str, object]:
    name, _, version = bundle.partition(":")
    if not version:
        raise click.UsageError(f"{bundle!r} is not of the form NAME:VERSION")
    options = read_toml(options_file) if options_file else {}
    return {"bundle": name, "version": version, "group": group, "options": options}


@command.command()
@_what_and_where
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(bundle: str, *, group: str, options_file: Path | None, as_json: bool) -> None:
    """Say what a rollout of NAME:VERSION would be, and what of it could not be rolled back.

    Example: edgepack rollout plan churn:1.4.0 --to gateways
    """
    document = from_environment(os.environ).post(
        "/rollouts:plan", _body(bundle, group, options_file)
    )
    emit_json(document) if as_json else say(render_plan(document))


@command.command()
@_what_and_where
@click.option("--wait", is_flag=True, help="Watch it until it ends.")
@click.option("--timeout", default=86_400.0, show_default=True, help="Seconds to --wait at most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def start(
    bundle: str, *, group: str, options_file: Path | None, wait: bool, timeout: float, as_json: bool
) -> int:
    """Roll NAME:VERSION out to a group.

    Example: edgepack rollout start churn:1.4.0 --to gateways --wait
    """
    client = from_environment(os.environ)
    body = _body(bundle, group, options_file)
    for warning in client.post("/rollouts:plan", body)["warnings"]:
        note(f"warning: {warning}")
    rollout = client.post("/rollouts", body, headers={"Idempotency-Key": str(uuid.uuid4())})
    if wait:
        note(f"rollout {rollout['id']} started")
        return _watch(client, rollout["id"], timeout)
    emit_json(rollout) if as_json else say(f"rollout {rollout['id']} is {rollout['state']}")
    return Exit.OK


@command.command()
@click.argument("rollout")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(rollout: str, *, as_json: bool) -> None:
    """Show stages, devices and gates of a rollout.

    Example: edgepack rollout status digits-1-1-0-7f3a
    """
    document = from_environment(os.environ).get(f"/rollouts/{rollout}")
    emit_json(document) if as_json else say(render_rollout(document))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_rollouts(*, as_json: bool) -> None:
    """List rollouts, the newest first.

    Example: edgepack rollout list
    """
    items = from_environment(os.environ).items("/rollouts")
    if as_json:
        emit_json({"rollouts": items})
        return
    rows = [(one["id"], one["group"], one["state"], one["reason"]) for one in items]
    say(table(("ROLLOUT", "GROUP", "STATE", "WHY"), rows))


@command.command()
@click.argument("rollout")
@click.option("--timeout", default=86_400.0, show_default=True, help="Seconds to watch at most.")
def watch(rollout: str, *, timeout: float) -> int:
    """Watch a rollout until it ends or waits for a person.

    Exit code 0: done, 10: paused, 11: failed or rolled back, 12: time is up.

    Example: edgepack rollout watch digits-1-1-0-7f3a
    """
    return _watch(from_environment(os.environ), rollout, timeout)


@command.command()
@click.argument("rollout")
def why(rollout: str) -> None:
    """Say in words and numbers why a rollout is where it is.

    Example: edgepack rollout why digits-1-2-0-90c1
    """
    say(from_environment(os.environ).get(f"/rollouts/{rollout}/why")["why"])


def _action(name: str, words: str) -> None:
    example = f"Example: edgepack rollout {name} digits-1-1-0-7f3a"

    @command.command(name, help=f"{words}\n\n{example}")
    @click.argument("rollout")
    def act(rollout: str) -> None:
        document = from_environment(os.environ).post(f"/rollouts/{rollout}/{name}", {})
        say(f"rollout {rollout} is {document['state']}")


_action("pause", "Stop offering the bundle to more devices.")
_action("resume", "Go on; failures seen so far count as acknowledged.")
_action("promote", "Pass the current stage by hand.")
_action("rollback", "Return every device to what it ran before.")
_action("abort", "End the rollout; devices keep what they run.")


def _watch(client: FleetClient, rollout: str, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    shown = ""
    document: dict[str, Any] = client.get(f"/rollouts/{rollout}")
    while True:
        text = render_rollout(document)
        if text != shown:
            say(text)
            shown = text
        if document["state"] in EXITS:
            return EXITS[document["state"]]
        if time.monotonic() > deadline:
            note(f"the rollout has not ended after {timeout:.0f} s")
            return Exit.TIMED_OUT
        time.sleep(POLL_SECONDS)
        document = _ask_again(client, rollout)


def _ask_again(client: FleetClient, rollout: str) -> dict[str, Any]:
    given_up = time.monotonic() + AWAY_SECONDS
    said = False
    while True:
        try:
            document: dict[str, Any] = client.get(f"/rollouts/{rollout}")
        except FleetUnreachableError as error:
            if time.monotonic() > given_up:
                raise
            if not said:
                note(f"{error}; trying again")
                said = True
            time.sleep(POLL_SECONDS)
        else:
            return document
