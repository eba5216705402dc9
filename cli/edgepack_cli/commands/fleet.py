"""``edgepack fleet``: run the fleet service."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from edgepack_cli.commands.token import role_option

CONFIG_OPTION = click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True,
    help="The service's configuration, such as /etc/edgepack/fleet.toml.",
)  # fmt: skip


@click.group()
def command() -> None:
    """Run the fleet service."""


@command.command()
@CONFIG_OPTION
def serve(config: Path) -> None:
    """Serve the API, the page and the bundles, and drive rollouts.

    Example: edgepack fleet serve --config fleet.toml
    """
    _become("--config", str(config))


@command.command()
@CONFIG_OPTION
@click.option("--name", required=True, help="Who the first admin is.")
def init(config: Path, name: str) -> None:
    """Make the first admin, before the service starts; print the address to log in at.

    The address holds a code that is good once, for 15 minutes: start the service, open it, and
    choose a passkey or a password. It works again with another name when nobody can log in any
    more. While the service runs, `edgepack user add` adds people.

    Example: edgepack fleet init --config fleet.toml --name anna
    """
    _become("init", "--config", str(config), "--name", name)


@command.command()
@CONFIG_OPTION
@click.option("--name", required=True, help="Whose token this is.")
@role_option
@click.option("--days", default=90, show_default=True, help="How long it is valid.")
def token(config: Path, name: str, role: str, days: int) -> None:
    """Make the first access token, before the service starts; print it once.

    While the service runs, `edgepack token create` makes more.

    Example: edgepack fleet token --config fleet.toml --name ci --role publisher
    """
    _become("token", "--config", str(config), "--name", name, "--role", role, "--days", str(days))


@command.command("mqtt-config")
@CONFIG_OPTION
@click.option(
    "--host",
    "hosts",
    multiple=True,
    required=True,
    metavar="HOST",
    help="A name or address at which the broker is reached; the first goes into the "
    "configuration. Repeatable.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder to write to; files that are there are kept or renewed.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8883,
    show_default=True,
    help="Where the broker listens.",
)
@click.option(
    "--broker-folder",
    metavar="FOLDER",
    help="Where the files will be on the broker's machine.  [default: --out]",
)
@click.option(
    "--server-certificate",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A certificate for the broker that another authority issued, instead of a new one.",
)
@click.option(
    "--server-key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Its key.",
)
@click.option("--renew", is_flag=True, help="Issue certificates again that are good for long yet.")
def mqtt_config(
    config: Path,
    hosts: tuple[str, ...],
    out: Path,
    port: int,
    broker_folder: str | None,
    server_certificate: Path | None,
    server_key: Path | None,
    *,
    renew: bool,
) -> None:
    """Write what Mosquitto needs to let in this fleet's devices only, each to its own topics.

    Configuration, access list, certificates and the list of revoked ones; and the certificate with
    which the service connects. Run again it keeps keys, and renews what ends soon. It prints what
    to put where.

    Example: edgepack fleet mqtt-config --config fleet.toml --host broker.example --out mosquitto
    """
    given = {
        "--broker-folder": broker_folder,
        "--server-certificate": server_certificate,
        "--server-key": server_key,
    }
    _become(
        "mqtt-config", "--config", str(config), f"--out={out}", f"--port={port}",
        *(f"--host={host}" for host in hosts),
        *(f"{key}={one}" for key, one in given.items() if one is not None),
        *(["--renew"] if renew else []),
    )  # fmt: skip


@command.command()
@CONFIG_OPTION
@click.option(
    "--host", "hosts", multiple=True, required=True, metavar="HOST",
    help="A name or address by which the service is reached. Repeatable.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="The folder to write service.pem and service.key to.",
)  # fmt: skip
@click.option("--renew", is_flag=True, help="Issue it again although it does not end soon.")
def certificate(config: Path, hosts: tuple[str, ...], out: Path, *, renew: bool) -> None:
    """Make the service's own TLS certificate, from the fleet's authority.

    Devices and `edgepack login --owner` trust it by the keyring. Run again it keeps the key, and
    issues the certificate again when it is for other hosts or ends soon; then send the service
    SIGHUP.

    Example: edgepack fleet certificate --config fleet.toml --host fleet.example --out tls
    """
    _become(
        "certificate", "--config", str(config), "--out", str(out),
        *(part for host in hosts for part in ("--host", host)), *(["--renew"] if renew else []),
    )  # fmt: skip


@command.command("audit-verify")
@CONFIG_OPTION
@click.option(
    "--head", metavar="SEQUENCE:HASH", help="The end that was seen before: nothing may be missing."
)
def audit_verify(config: Path, head: str | None) -> None:
    """Verify the audit log of a service that does not run, or of a backup.

    Exits with 6 when anything was changed. While the service runs: edgepack audit verify.

    Example: edgepack fleet audit-verify --config fleet.toml
    """
    given = [] if head is None else ["--head", head]
    _become("audit-verify", "--config", str(config), *given)


def _become(*arguments: str) -> None:
    # The process becomes the service, so that signals and exit codes are the service's own.
    os.execv(sys.executable, [sys.executable, "-m", "edgepack_fleet", *arguments])  # noqa: S606
