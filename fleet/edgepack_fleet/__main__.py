"""``python -m edgepack_fleet``: run the service, or make a token or an admin on its machine."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from edgepack_contract.errors import ConfigError, DocumentError, EdgepackError, SigningKeyError
from edgepack_fleet.auditing import AuditError, parse_head, verify_log
from edgepack_fleet.auditlog import append_audit
from edgepack_fleet.broker_files import BrokerRequest
from edgepack_fleet.broker_setup import set_up_broker
from edgepack_fleet.config import FleetConfig, configured_url, load_config
from edgepack_fleet.db.database import Database
from edgepack_fleet.grants import EVERYTHING, GRANTED_ROLES, Role
from edgepack_fleet.people import add_user, code_url
from edgepack_fleet.service_certificate import make_certificate
from edgepack_fleet.tokens import create_token
from edgepack_fleet.trust import LOCAL
from edgepack_fleet.wallclock import wall_ms

EXIT_FAILED = 1
EXIT_VERIFICATION = 6
EXIT_CONFIG = 78
"""``EX_CONFIG`` of sysexits: a supervisor must not restart what only a person can mend."""

COMMANDS = ("serve", "token", "init", "mqtt-config", "certificate", "audit-verify")


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        _run(options, load_config(options.config, os.environ))
    except AuditError as error:
        _complain(error)
        return EXIT_VERIFICATION
    except (ConfigError, DocumentError, SigningKeyError) as error:
        _complain(error)
        return EXIT_CONFIG
    except EdgepackError as error:
        _complain(error)
        return EXIT_FAILED
    return 0


def _run(options: argparse.Namespace, config: FleetConfig) -> None:
    match options.command:
        case "token":
            _say(make_token(config, options.name, Role(options.role), options.days))
        case "init":
            _say(make_admin(config, options.name))
        case "mqtt-config":
            request = _broker_request(config, options)
            _say("\n".join(set_up_broker(config, request, now_ms=wall_ms())))
        case "certificate":
            _say("\n".join(_certificate(config, options)))
        case "audit-verify":
            _say(verify_stopped(config, options.head))
        case _:
            # the libraries of the API take longer to import than the other commands to run
            from edgepack_fleet.server import serve  # noqa: PLC0415

            serve(config, lambda url: _say(f"fleet ready {url}"), source=str(options.config))


def make_token(config: FleetConfig, name: str, role: Role, days: int) -> str:
    """Make a token in the database itself, while the service does not run.

    Raises:
        StorageError: The service runs; it makes tokens over its API.
        ConflictError, InvalidRequestError: See :func:`create_token`.
    """
    database = Database(config.database_url)
    try:
        now_ms = wall_ms()
        with database.write() as session:
            secret = create_token(
                session, name=name, role=role, now_ms=now_ms, ttl_seconds=days * 86_400
            )
            append_audit(
                session,
                at_ms=now_ms,
                actor=LOCAL,
                action="token.create",
                subject=name,
                detail={"role": role.value, "days": days},
            )
        return secret
    finally:
        database.close()


def make_admin(config: FleetConfig, name: str) -> str:
    """Add an admin in the database itself and return the address with their login code.

    Raises:
        StorageError: The service runs; it adds people over its API.
        ConflictError, InvalidRequestError: See :func:`add_user`.
        ConfigError: Nobody can tell the page's address.
    """
    url = configured_url(config.http)
    with contextlib.closing(Database(config.database_url)) as database:
        now_ms = wall_ms()
        with database.write() as session:
            code = add_user(session, name=name, role=Role.ADMIN, scope=EVERYTHING, now_ms=now_ms)
            detail = {"role": Role.ADMIN.value}
            append_audit(
                session, at_ms=now_ms, actor=LOCAL, action="user.add", subject=name, detail=detail
            )
        return code_url(url, code)


def verify_stopped(config: FleetConfig, head: str | None) -> str:
    """Verify the audit log of a service that does not run, or of a backup; say what was found.

    Raises:
        StorageError: The service runs; it verifies over its API.
        AuditError: A chain is broken, or does not go on from ``head``.
        InvalidRequestError: ``head`` is not of the form SEQUENCE:HASH.
    """
    known = None if head is None else parse_head(head)
    with contextlib.closing(Database(config.database_url)) as database, database.read() as session:
        report = verify_log(session, known)
    if report.broken:
        raise AuditError("; ".join(fault.words for fault in report.broken))
    return f"{report.words()}; head {report.head}"


def _certificate(config: FleetConfig, options: argparse.Namespace) -> list[str]:
    if not options.host or options.out is None:
        raise ConfigError("certificate needs --host and --out")
    out = options.out.absolute()
    return make_certificate(
        config, hosts=options.host, out=out, renew=options.renew, now_ms=wall_ms()
    )


def _broker_request(config: FleetConfig, options: argparse.Namespace) -> BrokerRequest:
    """What ``mqtt-config`` was asked for.

    Raises:
        ConfigError: Something is missing.
    """
    own = (options.server_certificate, options.server_key)
    if not options.host or options.out is None:
        raise ConfigError("mqtt-config needs --host and --out")
    if any(own) and not all(own):
        raise ConfigError("--server-certificate and --server-key belong together: give both")
    out = options.out.absolute()
    return BrokerRequest(
        tenant=config.tenant,
        hosts=options.host,
        port=options.port,
        out=out,
        on_broker=options.broker_folder or PurePosixPath(out),
        own=own if all(own) else None,
        renew=options.renew,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edgepack_fleet", description=__doc__)
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="serve")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--name", default="")
    parser.add_argument("--role", choices=[role.value for role in GRANTED_ROLES], default="viewer")
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--port", type=int, default=8883)
    parser.add_argument("--broker-folder", type=PurePosixPath)
    parser.add_argument("--server-certificate", type=Path)
    parser.add_argument("--server-key", type=Path)
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("--head")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _complain(error: EdgepackError) -> None:
    sys.stderr.write(f"edgepack fleet: {error}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
