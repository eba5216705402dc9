"""``python -m edgepack_runtime``: arguments in, exit code out."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from pathlib import Path

from edgepack_contract.errors import BundleError, ConfigError, DocumentError, EdgepackError
from edgepack_contract.keyring import open_keyring
from edgepack_contract.limits import LIMITS
from edgepack_runtime.config import load_config
from edgepack_runtime.process import run_device
from edgepack_runtime.standalone import Listen, run_bundle

EXIT_VERIFICATION = 6
EXIT_CONFIG = 78
EXIT_INTERNAL = 1

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the stable names that a call gives in ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        told = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **told,
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def main() -> int:
    """Run the daemon, or serve one bundle."""
    arguments = _arguments()
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if not sys.stderr.isatty() else logging.Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        asyncio.run(_serve_bundle(arguments) if arguments.bundle else _serve_device(arguments))
    except EdgepackError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the outermost boundary
        return exit_code(error)
    return 0


def exit_code(error: EdgepackError) -> int:
    """78 tells a service manager that a restart is no use; 6 that something is not genuine."""
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    return EXIT_VERIFICATION if isinstance(error, (BundleError, DocumentError)) else EXIT_INTERNAL


async def _serve_device(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, os.environ)
    await run_device(config)


async def _serve_bundle(arguments: argparse.Namespace) -> None:
    keyring = None
    if arguments.keyring is not None:
        with arguments.keyring.open("rb") as stream:
            raw = stream.read(LIMITS.keyring_bytes + 1)
        keyring = open_keyring(raw, owner_fingerprint=arguments.owner or "")
    listen = Listen(arguments.host, arguments.port, arguments.unix_socket)
    await run_bundle(arguments.bundle, listen, keyring)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgepack run")
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--config", type=Path)
    one.add_argument("--bundle", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--unix-socket", type=Path)
    parser.add_argument("--keyring", type=Path)
    parser.add_argument("--owner")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
