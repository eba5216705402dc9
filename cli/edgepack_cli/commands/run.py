"""``edgepack run``: the device daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from edgepack_cli.trust import FILE

_SPARING = {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Read by libraries when they are loaded: heaps and threads that would take memory and help nobody.

A model's own threads are onnxruntime's, and those the bundle's to choose.
"""


@click.command()
@click.option("--config", type=FILE, help="The device's configuration: installs, serves, reports.")
@click.option("--bundle", type=FILE, help="Serve this one bundle, with no fleet at all.")
@click.option(
    "--host", default="127.0.0.1", show_default=True,
    help="With --bundle: off loopback it takes TLS, a token and a keyring.",
)  # fmt: skip
@click.option("--port", default=8000, show_default=True, help="With --bundle: 0 takes a free port.")
@click.option(
    "--grpc-port", type=int, help="With --bundle: gRPC too, which takes edgepack[grpc]; 0 as above."
)
@click.option("--unix-socket", help="With --bundle: also listen on this socket.")
@click.option("--tls-certificate", type=FILE, help="With --bundle: PEM certificate and chain.")
@click.option("--tls-key", type=FILE, help="With --bundle: the certificate's PEM key.")
@click.option("--token-file", type=FILE, help="With --bundle: the token that callers must bear.")
@click.option("--ops-host", help="With --bundle: health and metrics, read-only, on this address.")
@click.option("--ops-port", type=int, help="With --ops-host: 9464 without it, 0 for a free port.")
@click.option("--keyring", type=FILE, help="With --bundle: require a signature of this keyring.")
@click.option("--owner", help="With --keyring: the pinned fingerprint of the owner key.")
@click.option(
    "--print-config", is_flag=True,
    help="With --config: print what it comes to, with defaults and EDGEPACK_* variables, and end.",
)  # fmt: skip
def command(
    *, config: Path | None, bundle: Path | None, host: str, port: int, grpc_port: int | None,
    unix_socket: str | None, tls_certificate: Path | None, tls_key: Path | None,
    token_file: Path | None, ops_host: str | None, ops_port: int | None,
    keyring: Path | None, owner: str | None, print_config: bool,
) -> None:  # fmt: skip
    """Run the device daemon with --config, or serve a single file with --bundle.

    Examples: edgepack run --config /etc/edgepack/device.toml

              edgepack run --bundle churn-1.4.0.edgepack
    """
    if (config is None) == (bundle is None):
        raise click.UsageError("give either --config or --bundle")
    if (keyring is None) != (owner is None):
        raise click.UsageError("--keyring and --owner belong together")
    if ops_port is not None and ops_host is None:
        raise click.UsageError("--ops-port needs --ops-host")
    if print_config and config is None:
        raise click.UsageError("--print-config needs --config")
    options = {
        "--grpc-port": grpc_port, "--unix-socket": unix_socket,
        "--tls-certificate": tls_certificate, "--tls-key": tls_key,
        "--token-file": token_file, "--ops-host": ops_host, "--ops-port": ops_port,
        "--keyring": keyring, "--owner": owner,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    if config is not None and given:
        raise click.UsageError(f"with --config the file says it, not {', '.join(given)}")
    if config is not None:
        _become("--config", str(config), *["--print-config"] * print_config)
    parts = [part for name, value in given.items() for part in (name, str(value))]
    _become("--bundle", str(bundle), "--host", host, "--port", str(port), *parts)


def _become(*arguments: str) -> None:
    # The process becomes the daemon, so that signals and exit codes are the daemon's own.
    for name, value in _SPARING.items():
        os.environ.setdefault(name, value)
    os.execv(sys.executable, [sys.executable, "-m", "edgepack_runtime", *arguments])  # noqa: S606
