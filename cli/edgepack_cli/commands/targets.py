"""``edgepack targets``: kinds of hardware to build for."""

from __future__ import annotations

import click

from edgepack_cli.output import bytes_text, emit_json, say, table
from edgepack_packager.targets import load_target, target_names


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(*, as_json: bool) -> None:
    """List the kinds of hardware that `edgepack build --target` knows.

    Example: edgepack targets
    """
    configs = {name: load_target(name) for name in target_names()}
    if as_json:
        emit_json(configs)
        return
    rows = [
        (
            name,
            one.architecture,
            one.cores,
            bytes_text(one.memory_bytes) if one.memory_bytes else "-",
            one.provenance.status,
        )
        for name, one in sorted(configs.items())
    ]
    say(table(("TARGET", "ARCHITECTURE", "CORES", "MEMORY", "FIGURES"), rows))
