"""The device daemon as a process: one for each state folder, signals, the order of ending."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import Waiver, admit
from edgepack_runtime import logs
from edgepack_runtime.admission import device_facts, reminding, warn_of_expiry
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.daemon import Daemon
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.listeners import Listeners, check_still_safe, on_hangup, tell_ports, watch
from edgepack_runtime.local.control import listening
from edgepack_runtime.membership.identity import load_identity
from edgepack_runtime.notify import Notifier
from edgepack_runtime.readiness import in_words, tell_status
from edgepack_runtime.reloading import changes, in_force
from edgepack_runtime.security import security_gate
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.calls import answering_calls
from edgepack_runtime.serving.server import serve
from edgepack_runtime.slot_runtime import now_ms
from edgepack_runtime.stopping import Stop, until_stopped
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.trust import open_trust

logger = logging.getLogger(__name__)

SESSION_FILE = "session"
MAX_SESSION = 2**53 - 1
"""The largest number that every reader of JSON keeps exact."""

END_SECONDS = 4.0
"""How long a daemon may take to write down its windows and say goodbye."""


async def run_device(
    reread: Callable[[], RuntimeConfig], notifier: Notifier, reason: str | None = None
) -> None:
    """Run a device daemon until SIGTERM or SIGINT.

    Args:
        reread: Reads what it is told; called at once, and at each SIGHUP.
        notifier: The service manager.
        reason: Why it shall run although it is insecure, None when nobody says so.

    Raises:
        ConfigError: A setting is insecure, the state folder is not ours or another daemon uses it,
            or the identity is not usable.
        EdgepackError: A part cannot start.
    """
    config = reread()
    facts = device_facts(config)
    waiver = admit(security_gate(facts), reason)
    warn_of_expiry(facts)
    stop = Stop()
    home = Path(config.state_dir)
    fs = DurableFS()
    fs.make_dirs(home)
    with only_one(home):
        remove_leftovers(fs, home, Path(config.identity.keyring))
        identity = load_identity(config)
        trust = open_trust(config, fs, system_ms=now_ms)
        session = next_session(fs, home, clock_ms=now_ms())
        # The random numbers spread what many devices would do at once; they guard nothing.
        rng = random.Random(os.urandom(8))  # noqa: S311
        daemon = Daemon(config, identity, trust, session=session, fs=fs, rng=rng)
        socket = config.serve.unix_socket
        app = App(
            daemon.slots.serving,
            phase_of=daemon.phase,
            waiver=waiver,
            refusals=daemon.refusals,
            body_bytes=config.serve.body_bytes,
            backlog=daemon.backlog,
            asked_by_mqtt=daemon.asked_by_mqtt,
        )
        guard = Guard(config.serve)
        async with _opened(daemon):
            server = await serve(
                app,
                unix_socket=Path(socket) if socket else None,
                host=config.serve.host,
                port=config.serve.port,
                guard=guard,
                ops=config.ops,
                insecure=waiver is not None,
                grace_seconds=config.serve.grace_seconds,
            )
            with reminding(waiver):
                async with (
                    listening(daemon.control(app), home),
                    answering_calls(app, daemon.slots.serving, config.serve, guard) as calls,
                ):
                    listeners = Listeners(app, server, calls, config.serve)
                    running = _Running(daemon, listeners, notifier, waiver, config)
                    on_hangup(partial(running.reload, reread))
                    await _run(running, stop)


@contextlib.asynccontextmanager
async def _opened(daemon: Daemon) -> AsyncIterator[None]:
    """Open the slots before anybody can ask for them, and end them cleanly whatever comes."""
    daemon.open()
    try:
        yield
    finally:
        await daemon.slots.close()


def remove_leftovers(fs: DurableFS, home: Path, keyring: Path) -> None:
    """Remove what writes that were cut off left beside the state and the keyring.

    A disk that does not allow it does not keep the device from serving.
    """
    try:
        fs.clean_temporaries(home)
        fs.clean_temporaries(keyring.parent, of=keyring.name)
    except DeviceError as error:
        logger.warning("leftovers stay: %s", error, extra={"event": "leftovers_stay"})


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


@dataclass(slots=True)
class _Running:
    """A daemon that listens; ``config`` is what is in force."""

    daemon: Daemon
    listeners: Listeners
    notifier: Notifier
    waiver: Waiver | None
    config: RuntimeConfig

    def reload(self, reread: Callable[[], RuntimeConfig]) -> None:
        """Take up what changed and can; a configuration that is wrong changes nothing."""
        self.notifier.reloading()
        try:
            told = reread()
            found, after = changes(self.config, told), in_force(self.config, told)
            facts = device_facts(after)
            check_still_safe(facts, self.waiver)
            self.listeners.server.reload(after.serve)
        except ConfigError as error:
            logger.warning(
                "the configuration stays as it is: %s", error, extra={"event": "reload_refused"}
            )
        else:
            self.config = after
            logs.configure(after.log, sys.stderr)
            self.daemon.reconfigure(after)
            warn_of_expiry(facts)
            _tell_reloaded(found.now, found.later)
        self.notifier.ready(in_words(self.daemon.slots))


def _tell_reloaded(now: tuple[str, ...], later: tuple[str, ...]) -> None:
    words = f"; changed: {', '.join(now)}" if now else ""
    logger.info(
        "certificate, token and configuration were read again%s", words,
        extra={"event": "reloaded", "changed": list(now)},
    )  # fmt: skip
    if later:
        logger.warning(
            "%s: this takes a restart, and stays as it was until then", ", ".join(later),
            extra={"event": "reload_waits", "settings": list(later)},
        )  # fmt: skip


async def _run(running: _Running, stop: Stop) -> None:
    daemon, notifier = running.daemon, running.notifier
    server = running.listeners.server
    daemon.start()
    socket = f" and {server.unix_socket}" if server.unix_socket else ""
    tell_ports(server, f"serving on port {server.port}{socket}")
    work = [asyncio.create_task(daemon.run_windows()), asyncio.create_task(daemon.run_health())]
    if daemon.renewer is not None:
        work.append(asyncio.create_task(daemon.renewer.run()))
    work.append(asyncio.create_task(tell_status(notifier, lambda: daemon.slots)))
    work += watch(notifier, daemon.slots.serving, daemon.slots.dead)
    try:
        await until_stopped(stop, *work)
    finally:
        notifier.stopping("finishes what is in flight")
        logger.info("stopping", extra={"event": "stopping"})
        for task in work:
            task.cancel()
        await running.listeners.end(stop)
        await _end(daemon)


async def _end(daemon: Daemon) -> None:
    try:
        async with asyncio.timeout(END_SECONDS):
            await daemon.stop()
    except TimeoutError:
        # Threads that hang would keep the process. What is on the disk is made for a sudden end.
        logger.error("not ended in time, so suddenly", extra={"event": "stop_cut_short"})
        os._exit(0)
