"""``python -m edgepack_runtime``: arguments in, exit code out."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path

from edgepack_contract.errors import (
    BundleError,
    ConfigError,
    DocumentError,
    EdgepackError,
    SigningKeyError,
    SourceError,
    UnsupportedBundleError,
)
from edgepack_contract.gate import REASON_VARIABLE
from edgepack_contract.keyring import open_keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_configured
from edgepack_runtime import interpreter, logs
from edgepack_runtime.config import LogConfig, OpsConfig, ServeConfig, load_config, to_toml
from edgepack_runtime.errors import FleetError, FleetUntrustedError, StillPendingError
from edgepack_runtime.event_loop import new_event_loop
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.notify import Notifier, notifier

Work = Coroutine[None, None, None]

EXIT_INTERNAL = 1
EXIT_BAD_INPUT = 3
EXIT_VERIFICATION = 6
EXIT_INCOMPATIBLE = 7
EXIT_TIMED_OUT = 12
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the daemon, or serve one bundle."""
    if sys.argv[1:2] == ["enrol"]:
        return _enrol(sys.argv[2:])
    arguments = _arguments()
    manager = notifier(os.environ, os.getpid())
    try:
        if arguments.print_config:
            print(to_toml(load_config(arguments.config, os.environ)), end="")  # noqa: T201
            return 0
        logs.configure(LogConfig(), sys.stderr)
        serve = _serve_bundle if arguments.bundle else _serve_device
        listen, work = serve(arguments, manager)
        interpreter.settle()
        with asyncio.Runner(loop_factory=partial(new_event_loop, listen.busy_poll_us)) as runner:
            runner.run(work)
    except EdgepackError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the outermost boundary
        return exit_code(error)
    return 0


def _enrol(arguments: list[str]) -> int:
    # another command than the daemon's, which would keep all of it in memory for nothing
    from edgepack_runtime.membership.command import enrol  # noqa: PLC0415

    try:
        return enrol(arguments)
    except EdgepackError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the outermost boundary
        return exit_code(error)
    except KeyboardInterrupt:
        words = "interrupted; the same command goes on where it ended"
        print(words, file=sys.stderr)  # noqa: T201 - the outermost boundary
        return EXIT_INTERRUPTED


def exit_code(error: EdgepackError) -> int:
    """What a service manager and a script go by.

    78: a restart is no use, configuration or keys must change. 6: not genuine, or not whole.
    7: not for this machine. 3: it cannot be read, or does not work. 12: it took too long. 1: the
    device failed.
    """
    match error:
        case ConfigError() | SigningKeyError():
            return EXIT_CONFIG
        case UnsupportedBundleError():
            return EXIT_INCOMPATIBLE
        case BundleError() | DocumentError() | FleetUntrustedError():
            return EXIT_VERIFICATION
        case StillPendingError():
            return EXIT_TIMED_OUT
        case SourceError() | ModelError() | FleetError():
            return EXIT_BAD_INPUT
        case _:
            return EXIT_INTERNAL


def _serve_device(arguments: argparse.Namespace, manager: Notifier) -> tuple[ServeConfig, Work]:
    # what is imported stays in memory, so neither daemon imports the other
    from edgepack_runtime.process import run_device  # noqa: PLC0415

    reread = partial(load_config, arguments.config, os.environ)
    config = reread()
    logs.configure(config.log, sys.stderr)
    return config.serve, run_device(reread, manager, os.environ.get(REASON_VARIABLE))


def _serve_bundle(arguments: argparse.Namespace, manager: Notifier) -> tuple[ServeConfig, Work]:
    from edgepack_runtime.standalone import run_bundle  # noqa: PLC0415

    keyring = None
    if arguments.keyring is not None:
        raw = read_configured(arguments.keyring, LIMITS.keyring_bytes, code="no-keyring")
        keyring = open_keyring(raw, owner_fingerprint=arguments.owner or "")
    listen = ServeConfig(
        host=arguments.host,
        port=arguments.port,
        grpc_port=arguments.grpc_port,
        unix_socket=arguments.unix_socket,
        tls_certificate=arguments.tls_certificate,
        tls_key=arguments.tls_key,
        token_file=arguments.token_file,
    )
    ops = OpsConfig(host=arguments.ops_host, port=arguments.ops_port)
    reason = os.environ.get(REASON_VARIABLE)
    work = run_bundle(arguments.bundle, listen, keyring, ops=ops, notifier=manager, reason=reason)
    return listen, work


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgepack run")
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--config", type=Path)
    one.add_argument("--bundle", type=Path)
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int)
    parser.add_argument("--unix-socket")
    parser.add_argument("--tls-certificate")
    parser.add_argument("--tls-key")
    parser.add_argument("--token-file")
    parser.add_argument("--ops-host")
    parser.add_argument("--ops-port", type=int, default=OpsConfig().port)
    parser.add_argument("--keyring", type=Path)
    parser.add_argument("--owner")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
