"""``edgepack audit``: who did what, and whether the log of it is whole."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from edgepack_cli.client import from_environment
from edgepack_cli.errors import CommandError, Exit
from edgepack_cli.output import emit_json, say, table

MAX_LINES = 1000
HEAD_BYTES = 256


@click.group()
def command() -> None:
    """Look at the audit log of the fleet service, and verify it."""


@command.command("list")
@click.option("--actor", help="Only what this token, person or `fleet` or `local` did.")
@click.option("--action", help="Only this, such as rollout.start, or rollout for all of those.")
@click.option("--subject", help="Only what was done to this, such as a rollout or a device.")
@click.option("--since", metavar="DATE", help="Only from this day on, such as 2026-11-21 (UTC).")
@click.option(
    "--limit", type=click.IntRange(1, MAX_LINES), default=50, show_default=True,
    help="At most this many entries.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_entries(
    *, actor: str | None, action: str | None, subject: str | None, since: str | None, limit: int,
    as_json: bool,
) -> None:  # fmt: skip
    """List entries, the newest first.

    Example: edgepack audit list --action rollout --since 2026-11-01
    """
    page = from_environment(os.environ).get(
        "/audit", actor=actor, action=action, subject=subject, limit=limit,
        since_ms=None if since is None else _day_ms(since),
    )  # fmt: skip
    if as_json:
        emit_json(page)
        return
    rows = [
        (one["sequence"], _when(one["at_ms"]), one["actor"], one["action"], one["subject"],
         _detail(one["detail"]))
        for one in page["items"]
    ]  # fmt: skip
    say(table(("ENTRY", "WHEN (UTC)", "WHO", "DID", "TO", "DETAIL"), rows))


@command.command()
@click.option("--head", metavar="SEQUENCE:HASH|FILE", help="The end that was seen before.")
@click.option(
    "--save-head", type=click.Path(path_type=Path, dir_okay=False),
    help="Write the end to this file, for --head of the next time; keep it elsewhere.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(*, head: str | None, save_head: Path | None, as_json: bool) -> None:
    """Verify every entry, and every event of every rollout; exit with 6 when one was changed.

    Whoever can write to the database could write the whole log anew. A head that was saved before
    shows that, and that entries were cut off the end: give it as --head.

    Example: edgepack audit verify --head head.txt --save-head head.txt
    """
    report = from_environment(os.environ).get("/audit/verify", head=_head(head))
    if as_json:
        emit_json(report)
    if not report["whole"]:
        raise CommandError(
            f"the audit log was changed: {report['words']}",
            exit_code=Exit.VERIFICATION,
            code="audit-broken",
        )
    if save_head is not None:
        save_head.write_text(f"{report['head']}\n", encoding="ascii")
    if not as_json:
        say(f"{report['words']}; head {report['head']}")


def _head(text: str | None) -> str | None:
    if text is None or ":" in text:
        return text
    with Path(text).open("rb") as stream:
        return stream.read(HEAD_BYTES).decode("ascii", "replace").strip()


def _day_ms(text: str) -> int:
    try:
        day = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.UsageError(f"--since {text!r} is not a date such as 2026-11-21") from error
    day = day if day.tzinfo is not None else day.replace(tzinfo=UTC)
    return max(0, int(day.timestamp() * 1000))


def _when(moment_ms: int) -> str:
    return f"{datetime.fromtimestamp(moment_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def _detail(detail: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value if isinstance(value, str | int | float) else json.dumps(value)}"
        for key, value in sorted(detail.items())
    )
