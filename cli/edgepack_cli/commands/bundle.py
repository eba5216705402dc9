"""``edgepack bundle``: what the fleet can roll out, and models taken out of bundles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgepack_cli.client import from_environment
from edgepack_cli.output import bytes_text, emit_json, note, say, table
from edgepack_contract.hardware import Hardware
from edgepack_contract.unpacked import open_local

ANY = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Push bundles to the fleet, list them, and take models out of them."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def push(file: Path) -> None:
    """Send a signed bundle to the fleet, which verifies it before anyone can see it.

    Example: edgepack bundle push churn-1.4.0.edgepack
    """
    pushed = from_environment(os.environ).put_file("/bundles", file)
    say(f"{pushed['name']}:{pushed['version']} {pushed['digest']}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_bundles(*, as_json: bool) -> None:
    """List the bundles that the fleet has.

    Example: edgepack bundle list
    """
    bundles = from_environment(os.environ).items("/bundles")
    if as_json:
        emit_json({"bundles": bundles})
        return
    rows = [
        (one["name"], one["version"], bytes_text(one["size"]), one["digest"]) for one in bundles
    ]
    say(table(("BUNDLE", "VERSION", "SIZE", "DIGEST"), rows))


@command.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--onnx", type=ANY, metavar="FILE|DIR", help="One plain ONNX file, weights inside.")
@click.option("--ort-package", type=ANY, metavar="DIR", help="A model package of onnxruntime.")
@click.option("--variant", help="Which one; default: the best for this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    file: Path, *, onnx: Path | None, ort_package: Path | None, variant: str | None, as_json: bool
) -> None:
    """Take the model of one variant out of FILE, which may be an unpacked folder too.

    A model package is read by onnxruntime's C interface; its Python package has no door to it yet,
    and loads the ONNX file inside.

    Example: edgepack bundle export churn-1.4.0.edgepack --onnx churn.onnx
    """
    wanted = [("onnx", onnx), ("ort-package", ort_package)]
    given = [(form, path) for form, path in wanted if path is not None]
    if not given:
        raise click.UsageError("give --onnx, --ort-package, or both")
    exporting, hardware = _exporting()
    writers = {"onnx": exporting.export_onnx, "ort-package": exporting.export_ort_package}
    with open_local(file) as opened:
        written = {
            form: writers[form](opened, path, variant=variant, hardware=hardware)
            for form, path in given
        }
    if as_json:
        emit_json(written)
        return
    for one in written.values():
        say(f"{one.path}: variant {one.variant} of {one.digest}")
    if ort_package is not None:
        note(
            f"read by onnxruntime {exporting.PACKAGE_RUNTIME} or newer through its C interface; "
            "from Python, load the model.onnx inside"
        )


def _exporting() -> tuple[Any, Hardware]:
    """The packager's part, which a machine that only talks to the fleet does without."""
    try:
        from edgepack_packager import exporting
        from edgepack_packager.targets import this_hardware
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"`edgepack bundle export` needs {error.name}; run: pip install 'edgepack[packager]'"
        ) from error
    return exporting, this_hardware()
