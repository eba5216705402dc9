"""The device daemon as a process: one for each state folder, signals, the order of ending."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import Waiver, admit
from edgepack_runtime.admission import device_facts, reminding, warn_of_expiry
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.daemon import Daemon
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.membership.identity import load_identity
from edgepack_runtime.security import Facts, security_gate
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.server import RunningServer, serve
from edgepack_runtime.slot_runtime import now_ms
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.trust import open_trust

logger = logging.getLogger(__name__)

SESSION_FILE = "session"
MAX_SESSION = 2**53 - 1
"""The largest number that every reader of JSON keeps exact."""


async def run_device(config: RuntimeConfig, reason: str | None = None) -> None:
    """Run a device daemon until SIGTERM or SIGINT.

    Args:
        config: What it was told.
        reason: Why it shall run although it is insecure, None when nobody says so.

    Raises:
        ConfigError: A setting is insecure, the state folder is not ours or another daemon uses it,
            or the identity is not usable.
        EdgepackError: A part cannot start.
    """
    facts = device_facts(config)
    waiver = admit(security_gate(facts), reason)
    warn_of_expiry(facts)
    stop = stop_event()
    home = Path(config.state_dir)
    fs = DurableFS()
    fs.make_dirs(home)
    with only_one(home):
        identity = load_identity(config)
        trust = open_trust(config, fs, system_ms=now_ms)
        session = next_session(fs, home, clock_ms=now_ms())
        # The random numbers spread what many devices would do at once; they guard nothing.
        rng = random.Random(os.urandom(8))  # noqa: S311
        daemon = Daemon(config, identity, trust, session=session, fs=fs, rng=rng)
        socket = config.serve.unix_socket
        server = await serve(
            App(
                daemon.slots.serving, phase_of=daemon.phase, waiver=waiver, refusals=daemon.refusals
            ),
            unix_socket=Path(socket) if socket else None,
            host=config.serve.host,
            port=config.serve.port,
            guard=Guard(config.serve),
            ops=config.ops,
            insecure=waiver is not None,
        )
        on_hangup(lambda: reload(server, device_facts(config), waiver))
        with reminding(waiver):
            await _run(daemon, server, stop)


def on_hangup(work: Callable[[], None]) -> None:
    """Do ``work`` in the loop at every SIGHUP from now on, which would kill the process else."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, work)


def reload(server: RunningServer, facts: Facts, waiver: Waiver | None) -> None:
    """Take up a new certificate and token, when nothing is insecure that was not waived."""
    waived = waiver.violations if waiver is not None else ()
    refused = [str(one) for one in security_gate(facts) if one not in waived]
    try:
        if refused:
            raise ConfigError("; ".join(refused), code="insecure")
        server.reload()
        warn_of_expiry(facts)
    except ConfigError as error:
        words = "certificate and token stay as they are: %s"
        logger.warning(words, error, extra={"event": "reload_refused"})
    else:
        logger.info("certificate and token were read again", extra={"event": "reloaded"})


def stop_event() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on, instead of killing the process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def tell_ports(server: RunningServer, words: str) -> None:
    """Say where the listeners are."""
    where = {"port": server.port, "ops_port": server.ops_port}
    logger.info(words, extra={"event": "serving", **where})
    if server.ops_port is not None:
        logger.info("health and metrics on port %d", server.ops_port, extra={"event": "ops"})


async def until_stopped(stop: asyncio.Event, *work: asyncio.Task[None]) -> None:
    """Wait for ``stop``, or for a piece of work to end, which it should not.

    Raises:
        BaseException: What ended the work.
    """
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({waiting, *work}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()


def next_session(fs: DurableFS, home: Path, *, clock_ms: int) -> int:
    """The number of this run: more than any before.

    The file keeps it growing when the clock was set back, the clock when the file is new, lost or
    damaged. A disk that does not take the number does not keep the device from serving.

    Args:
        fs: Reads and writes.
        home: The state folder.
        clock_ms: Wall clock, milliseconds since 1970 UTC.
    """
    path = home / SESSION_FILE
    session = max(_last_session(fs, path) + 1, clock_ms // 1000)
    try:
        fs.atomic_write(path, str(session).encode())
    except DeviceError as error:
        logger.warning(
            "session %d not written down: %s", session, error, extra={"event": "session_unwritten"}
        )
    return session


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the state folder for this process.

    Raises:
        ConfigError: Another process holds it (code ``in-use``), or it is not ours to write (code
            ``bad-state-dir``).
    """
    handle = _open_lock(home / "lock")
    try:
        _lock(handle, home)
        yield
    finally:
        os.close(handle)


def _last_session(fs: DurableFS, path: Path) -> int:
    try:
        text = fs.read_bounded(path, max_bytes=64).decode(errors="replace").strip()
    except FileNotFoundError:
        return 0
    except DeviceError as error:
        logger.warning("session file ignored: %s", error, extra={"event": "session_unread"})
        return 0
    number = int(text) if text.isascii() and text.isdigit() else 0
    return number if number < MAX_SESSION else 0


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; give the folder to the user that runs the "
            "daemon, or name another one as state_dir",
            code="bad-state-dir",
        ) from error


def _lock(handle: int, home: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"another daemon uses {home}; stop it first, or give this one its own state_dir",
            code="in-use",
        ) from error


async def _run(daemon: Daemon, server: RunningServer, stop: asyncio.Event) -> None:
    daemon.start()
    tell_ports(server, f"serving on port {server.port} and {server.unix_socket}")
    work = [asyncio.create_task(daemon.run_windows()), asyncio.create_task(daemon.run_health())]
    if daemon.renewer is not None:
        work.append(asyncio.create_task(daemon.renewer.run()))
    try:
        await until_stopped(stop, *work)
    finally:
        logger.info("stopping", extra={"event": "stopping"})
        for task in work:
            task.cancel()
        await server.stop()
        await daemon.stop()
