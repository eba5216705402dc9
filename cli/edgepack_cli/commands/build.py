"""``edgepack build``: a trained model becomes a bundle."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgepack_cli.build_view import watching
from edgepack_cli.keys.passphrases import read_key_passphrase
from edgepack_cli.output import emit_json, note, say
from edgepack_cli.stopping import stoppable
from edgepack_cli.trust import FILE
from edgepack_packager import Progress, Recipe, build, read_recipe, render_table
from edgepack_packager.quantities import parse_latency_ms, parse_seconds, parse_size

OUT = click.Path(path_type=Path, dir_okay=False)
ANY = click.Path(path_type=Path)
"""A file, a folder, or module:function."""

_WITH_UNITS = {
    "max_latency": ("max_latency_ms", parse_latency_ms),
    "max_size": ("max_size_bytes", parse_size),
    "max_memory": ("max_memory_bytes", parse_size),
    "time_budget": ("time_budget_s", parse_seconds),
}


@click.command()
@click.argument("model", type=ANY, required=False)
@click.option("--recipe", "recipe_file", type=FILE, help="TOML with any of these; options win.")
@click.option("--name", help="The bundle's name.")
@click.option("--version", help="Its semantic version.")
@click.option("-o", "--output", type=OUT, help="Default: NAME-VERSION.edgepack.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--check", is_flag=True, help="Search and judge, write no bundle.")
@click.option(
    "--data", type=ANY, help="Rows: csv, parquet, npz, npy, safetensors, module:function."
)
@click.option("--calibration", type=ANY, help="Rows to calibrate with, instead of --data.")
@click.option("--eval", "evaluation", type=ANY, help="Rows to judge on, instead of --data.")
@click.option("--reference", type=ANY, help="Rows for the drift reference, instead of --data.")
@click.option("--label", help="The column or array with the truth.")
@click.option("--time-column", help="Rows are judged on the latest.")
@click.option("--sequence-column", help="Names the sequence of each row.")
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help="Figures by its values.")
@click.option("--preprocess", type=FILE, help="ONNX, or steps in TOML, before the model.")
@click.option("--postprocess", type=FILE, help="ONNX, or steps in TOML, after the model.")
@click.option(
    "--target", "targets", multiple=True, help="A device config; default: this kind of machine."
)
@click.option("--measured", type=FILE, multiple=True, help="What bench --json wrote on a device.")
@click.option("--alternatives", type=int, default=2, show_default=True, help="Besides the best.")
@click.option("--max-drop", default="1pt", show_default=True, help="Allowed loss: 1pt or 1%.")
@click.option("--min-metric", multiple=True, metavar="METRIC=VALUE", help="At least.")
@click.option("--max-metric", multiple=True, metavar="METRIC=VALUE", help="At most, for errors.")
@click.option("--not-worse-than", type=FILE, help="A bundle that this one must be as good as.")
@click.option("--margin", default="0.5pt", show_default=True, help="By how much it may be worse.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="Scores each sample; more is better.")
@click.option("--max-latency", help="Of 95 in 100 single rows: 5ms.")
@click.option("--max-size", help="Of the model file: 2MiB.")
@click.option("--max-memory", help="Of the serving process: 90MiB.")
@click.option(
    "--optimize", type=click.Choice(["latency", "size", "memory"]), default="latency",
    show_default=True, help="What to minimise inside all gates.",
)  # fmt: skip
@click.option("--require-int8", is_flag=True, help="Fail rather than ship fp32.")
@click.option("--time-budget", help="End the search after: 60s, 10m.")
@click.option("--jobs", type=int, help="Candidates side by side; default: the cores.")
@click.option("--seed", default=0, show_default=True, help="Decides the split of --data.")
@click.option("--key", type=FILE, help="The publisher's key; without it the bundle is unsigned.")
@click.option("--security-version", default=0, show_default=True, help="Floor against downgrades.")
@click.option("--lock", type=OUT, help="Where decisions are written, or read with --locked.")
@click.option("--locked", is_flag=True, help="Repeat the decisions of --lock to the same digest.")
@click.option("--previous", type=FILE, help="A bundle whose reference edges are inherited.")
@click.option("--report", "report_html", type=OUT, help="Also write the report as HTML here.")
@click.option("--trust-type", "trusted_types", multiple=True, help="A type a .skops may load.")
@click.option(
    "--trust-pickle", type=click.Choice(["sandboxed", "unsandboxed"]), is_flag=False,
    flag_value="sandboxed", help="Load a pickle, which is code, in a child without network.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    context: click.Context, /, *, recipe_file: Path | None, check: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Convert MODEL to ONNX, search precisions, prove them on data, write one signed bundle.

    MODEL is a file, a folder, module:function, or models:/NAME/VERSION of MLflow.

    Exit codes: 3 bad input or conversion, 4 accuracy gate, 5 budget.

    Example: edgepack build churn.skops --name churn --version 1.4.0 --data rows.csv --label churned
    """
    given = _given(context, options)
    recipe = _recipe(recipe_file, given, check=check)
    if as_json:
        with stoppable() as check_stopped:
            made = build(recipe, lambda _: check_stopped())
        emit_json(made)
        return
    with stoppable() as check_stopped, watching(sys.stderr) as listener:

        def tell(progress: Progress) -> None:
            check_stopped()
            listener(progress)

        result = build(recipe, tell)
    say(render_table(result))
    for warning in result.warnings:
        note(f"warning: {warning}")
    say(f"{result.path or 'checked, not written:'} {result.digest}")


def _given(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """What the user gave, as the recipe names it; everything else is the recipe's business."""
    given = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    for name in ("min_metric", "max_metric"):
        if name in given:
            given[name] = _limits(given[name], name)
    for name, (field, parse) in _WITH_UNITS.items():
        if name in given:
            given[field] = parse(given.pop(name))
    if "key" in given:
        given["passphrase"] = read_key_passphrase(given["key"])
    return given


def _recipe(path: Path | None, given: dict[str, Any], *, check: bool) -> Recipe:
    if path is None:
        missing = [name for name in ("model", "name", "version") if name not in given]
        if missing:
            raise click.UsageError(f"give {', '.join(missing)}, or a --recipe that has them")
        recipe = Recipe(**given)
    else:
        recipe = read_recipe(path, **given)
    if check:
        return replace(recipe, output=None)
    return replace(recipe, output=recipe.output or Path(f"{recipe.name}-{recipe.version}.edgepack"))


def _limits(texts: tuple[str, ...], option: str) -> dict[str, float]:
    pairs = [text.partition("=") for text in texts]
    try:
        return {name: float(value) for name, _, value in pairs}
    except ValueError as error:
        raise click.BadParameter(
            f"--{option.replace('_', '-')} takes METRIC=VALUE, such as accuracy=0.85"
        ) from error
