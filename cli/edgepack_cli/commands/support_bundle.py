"""``edgepack support-bundle``: what is known of this device in one file, with no secrets in it."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack_cli.commands.doctor import view_of
from edgepack_cli.output import bytes_text, emit_json, note, say
from edgepack_cli.place import find_place, place_options
from edgepack_contract.atomic import replacing_private

DEFAULT = Path("edgepack-support.tar.gz")


@click.command()
@place_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=DEFAULT, show_default=True,
    help="Where to put it.",
)  # fmt: skip
@click.option("--with-capture", is_flag=True, help="Add captured inputs and outputs, as they are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *, config: Path | None, state_dir: Path | None, output: Path, with_capture: bool, as_json: bool
) -> None:
    """Pack configuration, records, history, findings, versions, logs and metrics of this device.

    Keys, tokens and passwords are taken out, wherever they stand; captured inputs stay out unless
    you say so. Look at it before you send it: `tar -tzf edgepack-support.tar.gz`.

    Example: sudo edgepack support-bundle -o support.tar.gz
    """
    from edgepack_runtime.local.support import collect, pack

    place = find_place(config, state_dir)
    files = collect(place.config, place.state_dir, view_of(place), with_capture=with_capture)
    raw = pack(files)
    with replacing_private(output) as stream:
        stream.write(raw)
    if as_json:
        emit_json({"path": output, "bytes": len(raw), "files": sorted(files)})
    else:
        say(f"{output}: {len(files)} files, {bytes_text(len(raw))}")
        note("keys, tokens and passwords were taken out; look at it before you send it")
