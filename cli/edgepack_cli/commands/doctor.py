"""``edgepack doctor``: check this device, with or without its daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack_cli.commands.local import look
from edgepack_cli.errors import Exit
from edgepack_cli.output import emit_json, say
from edgepack_cli.place import DEFAULT_CONFIG, Place, find_place, place_options
from edgepack_contract.errors import ConfigError, EdgepackError

if TYPE_CHECKING:
    from edgepack_runtime.local.view import DeviceView


@click.command()
@place_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, config: Path | None, state_dir: Path | None, as_json: bool) -> int:
    """Check clock, disk, memory, versions, keys, broker, fleet, service and slots of this device.

    Each finding that is not ok says what to do. The exit code is 1 when one is `fail`. Run it as
    the daemon's user or root: others may not read the keys.

    Example: edgepack doctor --config /etc/edgepack/device.toml
    """
    from edgepack_runtime.local.doctor import examine
    from edgepack_runtime.local.findings import Verdict, fail

    try:
        place = find_place(config, state_dir)
    except ConfigError as error:
        path = config or DEFAULT_CONFIG
        found = [fail("config", str(error), f"mend {path}"), *examine(None, None, None, [])]
    else:
        found = examine(place.config, place.state_dir, view_of(place), log_lines(place))
    if as_json:
        emit_json(found)
    else:
        for one in found:
            say(f"{one.verdict.upper():<5} {one.check}: {one.words}")
            if one.remedy:
                say(f"      {one.remedy}")
    failed = any(one.verdict == Verdict.FAIL for one in found)
    return Exit.INTERNAL if failed else Exit.OK


def view_of(place: Place) -> DeviceView | None:
    """How the device is; None when that cannot be seen."""
    try:
        return look(place)
    except EdgepackError:
        return None


def log_lines(place: Place) -> list[str]:
    """The daemon's last log lines; none when no daemon says them."""
    from edgepack_runtime.local.asking import Asking

    try:
        return Asking(place.state_dir).ask("GET", "logs", None, list[str])
    except EdgepackError:
        return []
