"""``edgepack verify``: is this bundle genuine and whole?"""

from __future__ import annotations

from pathlib import Path

import click

from edgepack_cli.output import emit_json, say
from edgepack_cli.trust import FILE, read_keyring, trust_options
from edgepack_contract.bundle import BundleFile, verify_bundle_file


@click.command()
@click.argument("file", type=FILE)
@trust_options(required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, *, keyring: Path, owner: str, as_json: bool) -> None:
    """Check the signature and every digest of a bundle; exit code 6 when something is wrong.

    Example: edgepack verify churn-1.4.0.edgepack --keyring keys/keyring.json --owner 3f9a...
    """
    with BundleFile.open(file) as opened:
        bundle = verify_bundle_file(opened, keyring=read_keyring(keyring, owner))
    if as_json:
        emit_json(
            {
                "name": bundle.name,
                "version": bundle.version,
                "digest": bundle.digest,
                "signed_by": bundle.signed_by,
            }
        )
        return
    say(f"{bundle.name} {bundle.version} {bundle.digest}")
    say(f"every byte is what publisher key {bundle.signed_by} signed")
