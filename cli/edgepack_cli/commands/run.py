"""``edgepack run``: the device daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from edgepack_cli.trust import FILE


@click.command()
@click.option("--config", type=FILE, help="The device's configuration: installs, serves, reports.")
@click.option("--bundle", type=FILE, help="Serve this one bundle, with no fleet at all.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="With --bundle: loopback only."
)
@click.option("--port", default=8000, show_default=True, help="With --bundle: 0 takes a free port.")
@click.option("--unix-socket", help="With --bundle: also listen on this socket.")
@click.option("--keyring", type=FILE, help="With --bundle: require a signature of this keyring.")
@click.option("--owner", help="With --keyring: the pinned fingerprint of the owner key.")
def command(
    config: Path | None, bundle: Path | None, host: str, port: int,
    unix_socket: str | None, keyring: Path | None, owner: str | None,
) -> None:  # fmt: skip
    """Run the device daemon with --config, or serve a single file with --bundle.

    Examples: edgepack run --config /etc/edgepack/device.toml

              edgepack run --bundle churn-1.4.0.edgepack
    """
    if (config is None) == (bundle is None):
        raise click.UsageError("give either --config or --bundle")
    if (keyring is None) != (owner is None):
        raise click.UsageError("--keyring and --owner belong together")
    if config is not None:
        _become("--config", str(config))
    options = {"--unix-socket": unix_socket, "--keyring": keyring, "--owner": owner}
    given = [part for name, value in options.items() if value for part in (name, str(value))]
    _become("--bundle", str(bundle), "--host", host, "--port", str(port), *given)


def _become(*arguments: str) -> None:
    # The process becomes the daemon, so that signals and exit codes are the daemon's own.
    os.execv(sys.executable, [sys.executable, "-m", "edgepack_runtime", *arguments])  # noqa: S606
