"""The device daemon as a process: one for each state folder, signals, the order of ending."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

from edgepack_contract.errors import ConfigError
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.daemon import Daemon
from edgepack_runtime.fsio import DurableFS
from edgepack_runtime.identity import load_identity
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.server import RunningServer, serve
from edgepack_runtime.slot_runtime import now_ms

logger = logging.getLogger(__name__)

SESSION_FILE = "session"


async def run_device(config: RuntimeConfig) -> None:
    """Run a device daemon until SIGTERM or SIGINT.

    Raises:
        ConfigError: Another daemon uses the state folder, or the identity is not usable.
        EdgepackError: A part cannot start.
    """
    home = Path(config.state_dir)
    fs = DurableFS()
    fs.make_dirs(home)
    with only_one(home):
        identity = load_identity(config)
        session = next_session(fs, home)
        # The random numbers spread what many devices would do at once; they guard nothing.
        rng = random.Random(os.urandom(8))  # noqa: S311
        daemon = Daemon(config, identity, session=session, fs=fs, rng=rng)
        socket = config.serve.unix_socket
        server = await serve(
            App(daemon.serving, phase_of=daemon.phase),
            unix_socket=Path(socket) if socket else None,
            host=config.serve.host,
            port=config.serve.port,
        )
        await _run(daemon, server)


async def until_signalled(*work: asyncio.Task[None]) -> None:
    """Wait for SIGTERM or SIGINT, or for a piece of work to end, which it should not.

    Raises:
        BaseException: What ended the work.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({waiting, *work}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()


def next_session(fs: DurableFS, home: Path) -> int:
    """The number of this run: one more than any before, durable before it is used.

    Raises:
        DeviceError: The disk does not take it.
    """
    path = home / SESSION_FILE
    before = 0
    with contextlib.suppress(FileNotFoundError):
        text = fs.read_bounded(path, max_bytes=64).decode(errors="replace").strip()
        before = int(text) if text.isascii() and text.isdigit() else 0
    # Without the file (a new device, a wiped disk) the clock keeps sessions growing.
    session = before + 1 if before else now_ms() // 1000
    fs.atomic_write(path, str(session).encode())
    return session


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the state folder for this process.

    Raises:
        ConfigError: Another process holds it.
    """
    handle = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(
            f"another daemon uses {home}; stop it first, or give this one its own state_dir",
            code="in-use",
        ) from error
    finally:
        os.close(handle)


async def _run(daemon: Daemon, server: RunningServer) -> None:
    daemon.start()
    logger.info(
        "serving on port %s and %s", server.port, server.unix_socket, extra={"event": "serving"}
    )
    work = [asyncio.create_task(daemon.run_windows()), asyncio.create_task(daemon.run_health())]
    try:
        await until_signalled(*work)
    finally:
        logger.info("stopping", extra={"event": "stopping"})
        for task in work:
            task.cancel()
        await server.stop()
        await daemon.stop()
