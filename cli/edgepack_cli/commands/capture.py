"""``edgepack capture``: sampled inputs and outputs that this device has kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.local_view import moment
from edgepack_cli.output import bytes_text, emit_json, note, say, table
from edgepack_cli.place import find_place, place_options
from edgepack_contract.atomic import replacing

if TYPE_CHECKING:
    from edgepack_runtime.capture.reading import Found

MOST_LISTED = 100
MOST_SHOWN = 1000
_OFF = "nothing is captured; [capture] share in the configuration says how much shall be"

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_slot_option = click.option("--slot", help="Only of this slot.")
_version_option = click.option("--version", "wanted", help="Only of this version of the model.")


@click.group()
def command() -> None:
    """Look at inputs and outputs that this device has kept; they never leave it by themselves.

    The configuration says how many: `[capture] share = 0.01`, and what is never written: `redact`.
    """


@command.command("list")
@place_options
@_slot_option
@_version_option
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=MOST_LISTED, show_default=True,
    help="How many at most.",
)  # fmt: skip
@_json_option
def list_captured(
    *, config: Path | None, state_dir: Path | None, slot: str | None, wanted: str | None,
    limit: int, as_json: bool,
) -> None:  # fmt: skip
    """List the newest captured requests.

    Example: edgepack capture list --slot churn --limit 20
    """
    found = [(one, _rows(one)) for one in _found(config, state_dir, slot, wanted)][-limit:][::-1]
    if as_json:
        emit_json([
            {"name": one.name, "bytes": one.size, "rows": rows, "origin": one.captured.origin}
            for one, rows in found
        ])  # fmt: skip
        return
    rows = [
        (one.name, moment(origin.at), origin.slot, origin.version, origin.request or "-", count,
         bytes_text(one.size))
        for one, count in found
        for origin in (one.captured.origin,)
    ]  # fmt: skip
    headings = ("NAME", "WHEN", "SLOT", "VERSION", "REQUEST", "ROWS", "SIZE")
    say(table(headings, rows) if rows else _OFF)


@command.command()
@click.argument("name")
@place_options
def show(*, name: str, config: Path | None, state_dir: Path | None) -> None:
    """Show one captured request as JSON; NAME is what `list` calls it.

    Example: edgepack capture show 3-17
    """
    for one in _found(config, state_dir, None, None):
        if one.name == name:
            tensors = {key: _shown(value) for key, value in one.captured.tensors.items()}
            emit_json({"name": name, "origin": one.captured.origin, "tensors": tensors})
            return
    raise CommandError(f"there is no captured request {name}; see `edgepack capture list`")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@place_options
@_slot_option
@_version_option
@click.option("--with-outputs", is_flag=True, help="Add the answers, as output:NAME.")
@_json_option
def export(
    *, file: Path, config: Path | None, state_dir: Path | None, slot: str | None,
    wanted: str | None, with_outputs: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write captured inputs into an .npz, which `edgepack build --data` reads.

    Rows are below each other, oldest first.

    Example: edgepack capture export rows.npz --slot churn
    """
    from edgepack_runtime.capture.reading import joined

    if file.suffix != ".npz":
        raise click.UsageError(f"{file} must end in .npz")
    found = [one.captured for one in _found(config, state_dir, slot, wanted)]
    arrays = joined(found, outputs=with_outputs)
    if not arrays:
        raise CommandError(_OFF)
    _write(file, arrays)
    if as_json:
        shapes = {name: array.shape for name, array in arrays.items()}
        emit_json({"path": file, "requests": len(found), "arrays": shapes})
    else:
        rows = len(next(iter(arrays.values())))
        say(f"{file}: {rows} rows of {len(found)} requests: {', '.join(arrays)}")


@command.command()
@place_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(*, config: Path | None, state_dir: Path | None, yes: bool) -> None:
    """Remove everything that was captured.

    Example: edgepack capture clear --yes
    """
    from edgepack_runtime.capture import ring
    from edgepack_runtime.storage.fsio import DurableFS

    folder = _folder(config, state_dir)
    if not yes:
        click.confirm(f"Remove what was captured in {folder}?", abort=True, err=True)
    with _sudo(folder):
        count = ring.clear(DurableFS(), folder)
    note(f"removed {count} segments")


def _found(
    config: Path | None, state_dir: Path | None, slot: str | None, wanted: str | None
) -> Iterator[Found]:
    from edgepack_runtime.capture.reading import read_captured

    folder = _folder(config, state_dir)
    with _sudo(folder):
        yield from read_captured(folder, slot=slot, version=wanted)


def _folder(config: Path | None, state_dir: Path | None) -> Path:
    from edgepack_runtime.capture.recorder import FOLDER

    return find_place(config, state_dir).state_dir / FOLDER


def _rows(one: Found) -> int:
    inputs = (value for key, value in one.captured.tensors.items() if key.startswith("input:"))
    first = next(inputs, None)
    return 0 if first is None else int(first.shape[0]) if first.ndim else 1


def _shown(tensor: Any) -> dict[str, Any]:
    shown = {"dtype": str(tensor.dtype), "shape": list(tensor.shape)}
    flat = tensor.reshape(-1)
    if flat.size > MOST_SHOWN:
        return shown | {"first": flat[:MOST_SHOWN].tolist()}
    return shown | {"data": tensor.tolist()}


def _write(path: Path, arrays: dict[str, Any]) -> None:
    import zipfile

    from numpy.lib.format import write_array

    with replacing(path) as part:
        handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            # numpy's own savez takes no array named "file"
            with zipfile.ZipFile(stream, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        write_array(entry, array, allow_pickle=False)
            stream.flush()
            os.fsync(handle)


@contextmanager
def _sudo(folder: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        words = f"{folder} is for the daemon's user and root: run this with sudo"
        raise CommandError(words, code="not-permitted") from error
