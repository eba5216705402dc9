"""``edgepack capture``: sampled inputs and outputs that this device has kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.local_view import moment
from edgepack_cli.output import bytes_text, emit_json, note, say, table
from edgepack_cli.place import find_place, place_options
from edgepack_contract.atomic import replacing_private

if TYPE_CHECKING:
    from edgepack_runtime.capture.reading import Found

MOST_LISTED = 100
MOST_SHOWN = 1000

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Which:
    """Whose captured requests, and which of them; None for all."""

    config: Path | None
    state_dir: Path | None
    slot: str | None = None
    version: str | None = None
    request: str | None = None

    @property
    def folder(self) -> Path:
        """Where they are."""
        from edgepack_runtime.capture.recorder import FOLDER

        return find_place(self.config, self.state_dir).state_dir / FOLDER

    def found(self) -> Iterator[Found]:
        """Them, oldest first."""
        from edgepack_runtime.capture.reading import read_captured

        folder = self.folder
        with _sudo(folder):
            yield from read_captured(
                folder, slot=self.slot, version=self.version, request=self.request
            )

    def none(self) -> str:
        """Why there are none, in words."""
        asked = [name for name in (self.slot, self.version, self.request) if name is not None]
        everything = Which(self.config, self.state_dir)
        if asked and any(True for _ in everything.found()):
            return f"nothing of {' '.join(asked)} is captured; see `edgepack capture list`"
        return (
            "nothing is captured; [capture] share in the configuration says how much shall be, and "
            "it is written every five seconds"
        )


def which_options(function: F) -> F:
    """Add what chooses captured requests; the function gets them as a :class:`Which`."""

    @functools.wraps(function)
    def chosen(
        *, config: Path | None, state_dir: Path | None, slot: str | None, wanted: str | None,
        request: str | None, **more: Any,
    ) -> Any:  # fmt: skip
        return function(which=Which(config, state_dir, slot, wanted, request), **more)

    for option in (
        click.option("--request", help="Only with this id, or this x-edgepack-key."),
        click.option("--version", "wanted", help="Only of this version of the model."),
        click.option("--slot", help="Only of this slot."),
    ):
        chosen = option(chosen)
    return cast("F", place_options(chosen))


@click.group()
def command() -> None:
    """Look at inputs and outputs that this device has kept; they never leave it by themselves.

    The configuration says how many: `[capture] share = 0.01`, and what is never written: `redact`.
    """


@command.command("list")
@which_options
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=MOST_LISTED, show_default=True,
    help="How many at most.",
)  # fmt: skip
@_json_option
def list_captured(*, which: Which, limit: int, as_json: bool) -> None:
    """List the newest captured requests.

    Example: edgepack capture list --slot churn --limit 20
    """
    found = [(one, _rows(one)) for one in which.found()][-limit:][::-1]
    if as_json:
        emit_json([
            {"name": one.name, "bytes": one.size, "rows": rows, "origin": one.captured.origin}
            for one, rows in found
        ])  # fmt: skip
        return
    rows = [
        (one.name, moment(origin.at), origin.slot, origin.version, origin.request or "-",
         origin.key or "-", count, bytes_text(one.size))
        for one, count in found
        for origin in (one.captured.origin,)
    ]  # fmt: skip
    headings = ("NAME", "WHEN", "SLOT", "VERSION", "REQUEST", "KEY", "ROWS", "SIZE")
    say(table(headings, rows) if rows else which.none())


@command.command()
@click.argument("name")
@place_options
def show(*, name: str, config: Path | None, state_dir: Path | None) -> None:
    """Show one captured request as JSON; NAME is what `list` calls it.

    Example: edgepack capture show 3-17
    """
    for one in Which(config, state_dir).found():
        if one.name == name:
            tensors = {key: _shown(value) for key, value in one.captured.tensors.items()}
            emit_json({"name": name, "origin": one.captured.origin, "tensors": tensors})
            return
    raise CommandError(f"there is no captured request {name}; see `edgepack capture list`")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@which_options
@click.option("--with-outputs", is_flag=True, help="Add the answers, as output:NAME.")
@click.option(
    "--with-origins",
    is_flag=True,
    help="Add whose each row is: origin:request, origin:key, origin:at.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@_json_option
def export(
    *, file: Path, which: Which, with_outputs: bool, with_origins: bool, overwrite: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write captured inputs into an .npz, which `edgepack build --data` reads.

    Rows are below each other, oldest first.

    Example: edgepack capture export rows.npz --slot churn
    """
    from edgepack_runtime.capture.reading import joined

    if file.suffix != ".npz":
        raise click.UsageError(f"{file} must end in .npz")
    if file.exists() and not overwrite:
        raise CommandError(f"{file} is there already; give --overwrite", code="output-exists")
    if not file.parent.is_dir():
        raise CommandError(f"there is no folder {file.parent} to write {file.name} into")
    found = [one.captured for one in which.found()]
    arrays = joined(found, outputs=with_outputs, origins=with_origins)
    if not arrays:
        raise CommandError(which.none())
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

    folder = Which(config, state_dir).folder
    if not yes:
        click.confirm(f"Remove what was captured in {folder}?", abort=True, err=True)
    with _sudo(folder):
        count = ring.clear(DurableFS(), folder)
    note(f"removed {count} segments")


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

    # numpy's own savez takes no array named "file"
    with replacing_private(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                write_array(entry, array, allow_pickle=False)


@contextmanager
def _sudo(folder: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        words = f"{folder} is for the daemon's user and root: run this with sudo"
        raise CommandError(words, code="not-permitted") from error
