"""``edgepack unpack``: the plain files of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.output import say
from edgepack_cli.trust import FILE, read_keyring, trust_options
from edgepack_contract.bundle import BundleFile
from edgepack_contract.layout import unpack


@click.command()
@click.argument("file", type=FILE)
@click.argument("folder", type=click.Path(path_type=Path))
@trust_options(required=False)
def command(file: Path, folder: Path, *, keyring: Path | None, owner: str | None) -> None:
    """Write the files of a bundle into a new FOLDER.

    What comes out is the tree that the signature is about: model_signing verifies it, onnxruntime
    loads the models.

    Example: edgepack unpack churn-1.4.0.edgepack churn
    """
    try:
        with BundleFile.open(file) as opened:
            bundle = unpack(opened, folder, keyring=read_keyring(keyring, owner))
    except FileExistsError as error:
        raise CommandError(str(error), code="exists") from error
    say(f"{bundle.name} {bundle.version} in {folder}: {', '.join(v.name for v in bundle.variants)}")
