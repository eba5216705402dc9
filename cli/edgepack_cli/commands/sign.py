"""``edgepack sign``: vouch for a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack_cli.keys.passphrases import read_key
from edgepack_cli.output import say
from edgepack_cli.trust import FILE
from edgepack_contract.layout import sign_bundle


@click.command()
@click.argument("file", type=FILE)
@click.option("--key", type=FILE, required=True, help="The publisher's private key.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: FILE itself.")
def command(file: Path, *, key: Path, output: Path | None) -> None:
    """Sign a bundle; its identity stays what it is.

    Example: edgepack sign churn-1.4.0.edgepack --key keys/publisher.key
    """
    signer = read_key(key)
    digest = sign_bundle(file, output or file, signer)
    say(f"{digest} signed by {signer.public.fingerprint}")
