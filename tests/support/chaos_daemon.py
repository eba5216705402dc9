"""A whole daemon in a forked process: started, asked, told what to run, asked again, ended.

A fork of a process that has imported everything costs tens of milliseconds where a fresh one costs
a second; it has no threads and no session of onnxruntime when it forks, so that nothing is shared
but code. From there on all of it is the product: :func:`edgepack_runtime.process.run_device`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from chaos_scenarios import BAD_ROW, BAD_VERSION, DEVICE, GOOD_ROW, MODEL

from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind, device_topic
from edgepack_runtime import process
from edgepack_runtime.activation.state import RESTING
from edgepack_runtime.config import load_config
from edgepack_runtime.daemon import Daemon
from edgepack_runtime.errors import StorageFaultError
from edgepack_runtime.notify import Notifier

SECONDS = 45.0
"""The longest that one run may take; only what hangs takes it."""

GATES = {"main": "", "slot": f"slot-{MODEL}", "spool": "spool_0", "load": "load"}
"""The threads of a daemon that use the disk, by name; the first thread has none."""

_PR_SET_PDEATHSIG = 1


@dataclass
class Script:
    """What a daemon is to go through.

    Attributes:
        home: Its folder.
        desired: The document that its fleet sends when it is up.
        generation: That document's.
        bad: Whether the model wanted misbehaves once it is asked.
        die_at: The phase in which it ends itself at once, with SIGABRT.
        gate: The thread that is to be held until somebody traces it, see :data:`GATES`.
        must_settle: Whether it goes on until the wish is fulfilled; else any end of it will do.
    """

    home: Path
    desired: bytes
    generation: int
    bad: bool = False
    die_at: Phase | None = None
    gate: str | None = None
    must_settle: bool = True


@dataclass
class Run:
    """How it went: what it answered, how the slot rested, how the process ended.

    ``trouble`` is what kept the script from being played.
    """

    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    phase: str = ""
    code: str = ""
    words: str = ""
    blocked: list[str] = field(default_factory=list)
    trouble: str = ""
    silent: int = 0  # good requests that got no answer
    modules: list[str] = field(default_factory=list)
    exit: int = 0
    hung: bool = False


class Child:
    """A forked daemon."""

    def __init__(self, script: Script) -> None:
        self._out, into = os.pipe()
        self._at_gate, gate = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._out)
            os.close(self._at_gate)
            _live(script, into, gate)
        os.close(into)
        os.close(gate)

    def thread(self) -> int | None:
        """The id of the thread that waits at the gate, None when the process ended before."""
        ready, _, _ = select.select([self._at_gate], [], [], SECONDS)
        raw = os.read(self._at_gate, 16) if ready else b""
        if not raw:
            return None
        return int(raw)

    def wait_stopped(self) -> bool:
        """Wait until the process has stopped itself; whether it has."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        return os.WIFSTOPPED(status)

    def go_on(self) -> None:
        """Let a stopped process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> Run:
        """Wait for the end of the process."""
        said, deadline, hung = b"", time.monotonic() + SECONDS, False
        while True:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._out], [], [], max(0.0, left))
            if not ready:
                hung = True
                os.kill(self.pid, signal.SIGKILL)
                break
            chunk = os.read(self._out, 65536)
            if not chunk:
                break
            said += chunk
        _, status = os.waitpid(self.pid, 0)
        os.close(self._out)
        os.close(self._at_gate)
        run = Run(**json.loads(said)) if said.endswith(b"}") else Run()
        run.exit, run.hung = os.waitstatus_to_exitcode(status), hung
        return run


def warm_up(modules: list[str]) -> None:
    """Import what a run was seen to import, so that forks find it; starts no thread."""
    for name in modules:
        # some of them are parts of others that cannot be imported alone
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads are too many to fork"


def _live(script: Script, out: int, gate: int) -> None:
    """The child's whole life; does not return."""
    status = 1
    try:
        # a daemon whose tester is gone is nobody's
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _say_into(script.home / "daemon.log")
        if script.gate is not None:
            _hold(GATES[script.gate], gate)
        os.close(gate)
        _run(script, out)
        status = 0
    except BaseException:
        logging.getLogger("chaos").critical("daemon ended", exc_info=True)
    finally:
        os._exit(status)


def _say_into(log: Path) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    logging.basicConfig(level=logging.INFO, force=True, stream=sys.stderr)


def _hold(name: str, gate: int) -> None:
    """Stop the process where the named thread begins, and say which it is."""
    if not name:
        _stop_here(gate)
        return
    held, plain = os.dup(gate), threading.Thread.run

    def run(thread: threading.Thread) -> None:
        nonlocal held
        if held is not None and thread.name == name:
            mine, held = held, None
            _stop_here(mine)
            os.close(mine)
        plain(thread)

    threading.Thread.run = run  # type: ignore[method-assign]


def _stop_here(gate: int) -> None:
    os.write(gate, str(threading.get_native_id()).encode())
    os.kill(os.getpid(), signal.SIGSTOP)


def _run(script: Script, out: int) -> None:
    run = Run()

    class Played(Daemon):
        def start(self) -> None:
            super().start()
            # kept by the loop's own reference until it is done
            self.played = asyncio.get_running_loop().create_task(_play(self, script, run, out))

    process.Daemon = Played
    reread = partial(load_config, script.home / "device.toml", {})
    asyncio.run(process.run_device(reread, Notifier()))


async def _play(daemon: Daemon, script: Script, run: Run, out: int) -> None:
    try:
        await _until(lambda: _rested_or_serving(daemon))
        run.first = await _ask(script.home, GOOD_ROW)
        daemon._take(str(device_topic("default", DEVICE, Kind.DESIRED)), script.desired)
        await _until(lambda: _over(daemon, script), each=lambda: _meanwhile(daemon, script, run))
        run.last = await _ask(script.home, GOOD_ROW)
        status = daemon.slots.get(MODEL)
        if status is not None:
            said = status.agent.status()
            run.phase, run.code, run.words = str(said.phase), said.code, said.words
            run.blocked = list(said.blocked)
        run.modules = sorted(sys.modules)
    except Exception as error:  # noqa: BLE001
        # a script that cannot be played, for whatever reason, must not look like a quiet device
        run.trouble = repr(error)
    finally:
        await _end_with(run, out)


async def _end_with(run: Run, out: int) -> None:
    """Tell how it went and ask for the end; both once more when that call was made to fail."""
    said = json.dumps(run.__dict__).encode()
    try:
        os.write(out, said)
    except OSError:
        os.write(out, said)
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(5.0)


def _rested_or_serving(daemon: Daemon) -> bool:
    """Whether the slot has taken up what the disk has, or there is none."""
    runtime = daemon.slots.get(MODEL)
    if runtime is None:
        return True
    active = runtime.slot.active is not None
    agent = runtime.agent
    return active or (agent.state.active is None and agent.state.phase in RESTING)


def _over(daemon: Daemon, script: Script) -> bool:
    runtime = daemon.slots.get(MODEL)
    if runtime is None:
        # with a broken disk there may not even be folders
        return not script.must_settle and daemon._orders.refused is not None
    agent = runtime.agent
    state = agent.state
    if script.die_at is not None and state.phase == script.die_at:
        # as sudden as SIGKILL, and told apart from it
        os.kill(os.getpid(), signal.SIGABRT)
    rests = state.phase in RESTING and not state.pending and not agent._inbox.waiting
    obeyed = state.obeyed.generation >= script.generation
    if not script.must_settle:
        # with a broken disk the wish may not have been written down
        obeyed = obeyed or agent._trouble is not None
        if isinstance(agent._trouble, StorageFaultError) and state.phase == Phase.PROBATION:
            # nothing more is written until a restart, so the probation cannot end; it serves on
            return not script.bad
    return rests and obeyed and state.announced and not agent._outcomes


async def _meanwhile(daemon: Daemon, script: Script, run: Run) -> None:
    """Go on asking: whatever the install does, some model answers, and a bad one shows."""
    runtime = daemon.slots.get(MODEL)
    tenure = runtime.slot.active if runtime else None
    if tenure is None:
        return
    if script.bad and tenure.version == BAD_VERSION:
        await _ask(script.home, BAD_ROW)
    else:
        run.silent += (await _ask(script.home, GOOD_ROW))["status"] != 200


async def _until(condition: Callable[[], bool], each: Callable[[], Any] | None = None) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it does not come to rest")
        if each is not None:
            await each()
        await asyncio.sleep(0.02)


async def _ask(home: Path, row: list[float]) -> dict[str, Any]:
    """A prediction over the daemon's own socket, as any client of the device gets it."""
    reader, writer = await asyncio.open_unix_connection(str(home / "serve.sock"))
    try:
        body = json.dumps({"instances": [row]}).encode()
        head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read(-1)
    finally:
        writer.close()
    head_, _, content = answer.partition(b"\r\n\r\n")
    status = int(head_.split()[1])
    return {"status": status, "body": json.loads(content) if content else None}
