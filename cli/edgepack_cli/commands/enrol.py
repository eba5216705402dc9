"""``edgepack enrol``: make this machine a member of a fleet."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--device", help="The id to have in the fleet.  [default: the host's name]")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")
@click.option("--port", default=8000, show_default=True, help="Where predictions are served.")
@click.option(
    "--join-file", default="-", show_default=True, metavar="FILE",
    help="The join string, in a file that only its owner can read; - is the standard input.",
)  # fmt: skip
@click.option("--join", hidden=True, help="The join string itself; for loopback only.")
@click.option(
    "--wait", default="1h", show_default=True, metavar="TIME",
    help="How long to wait until an operator approves: 90s, 30m, 2h, 1d.",
)  # fmt: skip
@click.option("--again", is_flag=True, help="Enrol anew, with another key; old files are kept.")
@click.option("--make-key", is_flag=True, help="Only make the key, and device.pub of it.")
@click.option("--check", is_flag=True, help="Only say who the device of FOLDER is; exit 0 or 1.")
def command(
    folder: Path, *, device: str | None, labels: tuple[str, ...], port: int, join_file: str,
    join: str | None, wait: str, again: bool, make_key: bool, check: bool,
) -> None:  # fmt: skip
    """Make a key in FOLDER, join the fleet of a join string, and keep what the fleet gives.

    `edgepack join-token create` prints join strings. An interrupted enrolment goes on when the
    same command is run again.

    Examples: edgepack enrol /etc/edgepack < join.txt

              edgepack enrol --check /etc/edgepack
    """
    options = {"--device": device, "--join": join, "--port": port, "--wait": wait}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    flags = {"--again": again, "--make-key": make_key, "--check": check}
    given += [name for name, value in flags.items() if value]
    given += [f"--label={label}" for label in labels]
    given.append(f"--join-file={join_file}")
    _become(*given, "--", str(folder))


def _become(*arguments: str) -> None:
    # The process becomes the runtime's own, which needs nothing of the command's libraries.
    whole = [sys.executable, "-m", "edgepack_runtime", "enrol", *arguments]
    os.execv(sys.executable, whole)  # noqa: S606
