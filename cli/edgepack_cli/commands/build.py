"""``edgepack build``: a trained model becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgepack_cli.keys.passphrases import read_key_passphrase
from edgepack_cli.output import emit_json, note, say
from edgepack_cli.trust import FILE
from edgepack_packager import Progress, Recipe, build, render_table
from edgepack_packager.recipe import parse_latency_ms, parse_size

OUT = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("model", type=FILE)
@click.option("--name", required=True, help="The bundle's name.")
@click.option("--version", required=True, help="Its semantic version.")
@click.option("-o", "--output", type=OUT, help="Default: NAME-VERSION.edgepack.")
@click.option("--data", type=FILE, help="Rows: csv, parquet, npz or npy; split by --seed.")
@click.option("--calibration", type=FILE, help="Rows to calibrate with, instead of --data.")
@click.option("--eval", "evaluation", type=FILE, help="Rows to judge on, instead of --data.")
@click.option("--reference", type=FILE, help="Rows for the drift reference, instead of --data.")
@click.option("--label", help="The column or array with the truth.")
@click.option("--target", "targets", multiple=True, help="A device config; repeatable.")
@click.option("--max-drop", default="1pt", show_default=True, help="Allowed loss: 1pt or 1%.")
@click.option("--min-metric", "minima", multiple=True, metavar="METRIC=VALUE", help="At least.")
@click.option("--max-latency", help="Of 95 in 100 single rows: 5ms.")
@click.option("--max-size", help="Of the model file: 2MiB.")
@click.option("--max-memory", help="Of the serving process: 90MiB.")
@click.option(
    "--optimize", type=click.Choice(["latency", "size", "memory"]), default="latency",
    show_default=True, help="What to minimise inside all gates.",
)  # fmt: skip
@click.option("--require-int8", is_flag=True, help="Fail rather than ship fp32.")
@click.option("--seed", default=0, show_default=True, help="Decides the split of --data.")
@click.option("--key", type=FILE, help="The publisher's key; without it the bundle is unsigned.")
@click.option("--security-version", default=0, show_default=True, help="Floor against downgrades.")
@click.option("--lock", type=OUT, help="Where decisions are written, or read with --locked.")
@click.option("--locked", is_flag=True, help="Repeat the decisions of --lock to the same digest.")
@click.option("--previous", type=FILE, help="A bundle whose reference edges are inherited.")
@click.option("--report", "report_html", type=OUT, help="Also write the report as HTML here.")
@click.option("--trust-type", "trusted_types", multiple=True, help="A type a .skops may load.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *, as_json: bool, minima: tuple[str, ...], max_latency: str | None, max_size: str | None,
    max_memory: str | None, output: Path | None, key: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Convert MODEL to ONNX, search precisions, prove them on data, write one signed bundle.

    Exit codes: 3 bad input or conversion, 4 accuracy gate, 5 budget.

    Example: edgepack build churn.skops --name churn --version 1.4.0 --data rows.csv --label churned
    """
    recipe = Recipe(
        **options,
        output=output or Path(f"{options['name']}-{options['version']}.edgepack"),
        key=key,
        passphrase=read_key_passphrase(key) if key else None,
        min_metric=_minima(minima),
        max_latency_ms=parse_latency_ms(max_latency) if max_latency else None,
        max_size_bytes=parse_size(max_size) if max_size else None,
        max_memory_bytes=parse_size(max_memory) if max_memory else None,
    )
    result = build(recipe, None if as_json else _progress)
    if as_json:
        emit_json(result)
        return
    say(render_table(result))
    for warning in result.warnings:
        note(f"warning: {warning}")
    say(f"{result.path} {result.digest}")


def _progress(progress: Progress) -> None:
    note(str(progress))


def _minima(texts: tuple[str, ...]) -> dict[str, float]:
    pairs = [text.partition("=") for text in texts]
    try:
        return {name: float(value) for name, _, value in pairs}
    except ValueError as error:
        raise click.BadParameter(
            "--min-metric takes METRIC=VALUE, such as accuracy=0.85"
        ) from error
