"""``edgepack targets``: kinds of hardware to build for."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.output import bytes_text, emit_json, say, table
from edgepack_contract.atomic import replacing
from edgepack_packager.detecting import detect_target, to_toml
from edgepack_packager.targets import load_target, target_names, this_hardware

BOARD_FILE = Path("/proc/device-tree/model")
"""Boards tell here which product they are; other machines have no such file."""


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """List, show and detect the kinds of hardware that `edgepack build --target` knows.

    Example: edgepack targets
    """
    if context.invoked_subcommand is None:
        _list(as_json=as_json)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_targets(*, as_json: bool) -> None:
    """List the targets that come with edgepack.

    Example: edgepack targets list
    """
    _list(as_json=as_json)


@command.command()
@click.argument("name", metavar="NAME|./FILE.toml")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, *, as_json: bool) -> None:
    """Show one target, and whether this machine is one.

    Example: edgepack targets show rpi5
    """
    config = load_target(name)
    here = config.is_this(this_hardware())
    if as_json:
        emit_json({"target": config, "this_machine": here})
        return
    say(to_toml(config))
    say(f"# this machine is {'one' if here else 'none'} of them")


@command.command()
@click.option("--name", help="Of the target; default: OUTPUT's, or the machine's model.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Write it here instead of to stdout.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
def detect(*, name: str | None, output: Path | None, overwrite: bool) -> None:
    """Write the target of this machine: run it on the device, build with the file.

    Example: edgepack targets detect -o my-board.toml
    """
    if output is not None and output.suffix != ".toml":
        raise click.UsageError(f"--output {output} must end with .toml")
    if output is not None and name not in (None, output.stem):
        raise click.UsageError(f"a target has its file's name: {output.stem}")
    chosen = name if output is None else output.stem
    config = detect_target(this_hardware(), name=chosen, board=BOARD_FILE.exists())
    if output is None:
        say(to_toml(config))
        return
    if output.exists() and not overwrite:
        raise CommandError(f"{output} is there already; give --overwrite", code="output-exists")
    with replacing(output) as part:
        part.write_text(to_toml(config), encoding="utf-8")
    say(f"{output}: {config.title}; edgepack build --target ./{output.name}")


def _list(*, as_json: bool) -> None:
    configs = {name: load_target(name) for name in target_names()}
    if as_json:
        emit_json(configs)
        return
    rows = [
        (
            name,
            one.architecture,
            one.cores or "-",
            bytes_text(one.memory_bytes) if one.memory_bytes else "-",
            one.provenance.status,
        )
        for name, one in sorted(configs.items())
    ]
    say(table(("TARGET", "ARCHITECTURE", "CORES", "MEMORY", "FIGURES"), rows))
