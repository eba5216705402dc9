"""The control socket: what a person at the device may ask of the running daemon.

HTTP on a Unix socket of mode 0600 in the state folder, for the daemon's own user and root; nothing
of it is ever on TCP. Paths begin with their version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from edgepack_contract.bundle import open_bundle
from edgepack_contract.errors import BundleError, ConfigError, EdgepackError, SourceError
from edgepack_contract.limits import KIB
from edgepack_contract.messages import Probation
from edgepack_runtime.activation.agent import Asked
from edgepack_runtime.activation.factory import EMPTIED_HERE
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.local.log_ring import LogRing
from edgepack_runtime.local.view import DeviceView
from edgepack_runtime.serving.asgi import (
    Asgi,
    HttpError,
    Receive,
    Response,
    Scope,
    Send,
    error_response,
    json_response,
)
from edgepack_runtime.serving.ops import PATHS, OpsOnly
from edgepack_runtime.serving.server import serve_privately
from edgepack_runtime.slot_runtime import SlotRuntime
from edgepack_runtime.slot_table import SlotTable
from edgepack_runtime.sources.archive import ArchiveSource
from edgepack_runtime.trust import Trust

logger = logging.getLogger(__name__)

SOCKET = "control.sock"
BODY_BYTES = 16 * KIB
BODY_SECONDS = 10.0
Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=86_400.0)]


class InstallOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Install the bundle file at ``path`` of this machine; without ``slot`` where its name is."""

    path: str
    slot: str | None = None
    probation_seconds: Seconds | None = None
    retry_blocked: bool = False


class RollbackOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Go back to the bundle before."""

    slot: str
    probation_seconds: Seconds | None = None


class ResetOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Empty slots; ``slots`` of None are all of them."""

    slots: list[str] | None = None


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot was asked for; it has taken notice once ``live.attended`` is the ticket."""

    slot: str
    ticket: int
    digest: str | None = None
    version: str | None = None
    resumes: bool = True


class Control:
    """The application behind the control socket.

    Args:
        slots: The slots.
        trust: Whom the device believes.
        view: Shows the device as it is now.
        forget: Removes what was captured.
        logs: The last log lines.
        app: The application whose health and metrics are told here too.
    """

    def __init__(
        self,
        slots: SlotTable,
        trust: Trust,
        *,
        view: Callable[[], DeviceView],
        forget: Callable[[], object],
        logs: LogRing,
        app: Asgi,
    ) -> None:
        self._slots, self._trust, self._view = slots, trust, view
        self._forget, self._logs, self._ops = forget, logs, OpsOnly(app)
        self._routes: Mapping[tuple[str, str], Callable[[bytes], Awaitable[object]]] = {
            ("GET", "/control/v1/status"): self._status,
            ("GET", "/control/v1/logs"): self._lines,
            ("POST", "/control/v1/install"): self._install,
            ("POST", "/control/v1/rollback"): self._rollback,
            ("POST", "/control/v1/reset"): self._reset,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] in PATHS:
            await self._ops(scope, receive, send)
            return
        await (await self._answer(scope["method"], scope["path"], receive)).send(send)

    async def _answer(self, method: str, path: str, receive: Receive) -> Response:
        route = self._routes.get((method, path))
        if route is None:
            return error_response(404, f"{method} {path[:80]} is nothing that can be asked here")
        try:
            return json_response(msgspec.to_builtins(await route(await _body(receive))))
        except HttpError as error:
            return _refusal(error.status, "malformed", "request", str(error))
        except msgspec.MsgspecError as error:
            return _refusal(400, "malformed", "request", str(error))
        except EdgepackError as error:
            return _refusal(409, error.code, _blame(error), str(error))

    async def _status(self, _: bytes) -> DeviceView:
        return self._view()

    async def _lines(self, _: bytes) -> list[str]:
        return self._logs.lines()

    async def _install(self, body: bytes) -> Taken:
        order = msgspec.json.decode(body, type=InstallOrder)
        path = Path(order.path)
        name = order.slot
        if name is None:
            name = await asyncio.to_thread(self._slot_for, path)
        agent = self._slots.at(name).agent
        asked = await asyncio.to_thread(
            agent.install_local,
            path,
            probation=_probation(order.probation_seconds),
            retry_blocked=order.retry_blocked,
        )
        return _taken(name, asked)

    def _slot_for(self, path: Path) -> str:
        """The slot that runs bundles of the file's name, or has it for its own name."""
        with contextlib.closing(ArchiveSource.open(path)) as source:
            found = open_bundle(source, source.digest, keyring=self._trust.keyring)
        bound = (name for name, one in self._slots if one.agent.state.name == found.name)
        return next(bound, found.name)

    async def _rollback(self, body: bytes) -> Taken:
        order = msgspec.json.decode(body, type=RollbackOrder)
        runtime = self._known(order.slot)
        asked = runtime.agent.roll_back(probation=_probation(order.probation_seconds))
        return _taken(order.slot, asked)

    async def _reset(self, body: bytes) -> list[Taken]:
        order = msgspec.json.decode(body, type=ResetOrder)
        names = [name for name, _ in self._slots] if order.slots is None else order.slots
        found = [(name, self._known(name)) for name in names]
        if order.slots is None:
            await asyncio.to_thread(self._forget)
        return [await asyncio.to_thread(_emptied, name, runtime) for name, runtime in found]

    def _known(self, name: str) -> SlotRuntime:
        runtime = self._slots.get(name)
        if runtime is None:
            there = ", ".join(sorted(one for one, _ in self._slots)) or "none"
            raise DeviceError(f"there is no slot {name[:80]!r}; there are: {there}", code="no-slot")
        return runtime


@contextlib.asynccontextmanager
async def listening(control: Control, state_dir: Path) -> AsyncIterator[None]:
    """Listen on the control socket until the block ends. A device serves also where it cannot."""
    server = None
    try:
        server = await serve_privately(control, state_dir / SOCKET)
    except ConfigError as error:
        told = {"event": "no_control_socket"}
        logger.warning("no command can reach this daemon: %s", error, extra=told)
    try:
        yield
    finally:
        if server is not None:
            await server.stop()


def _emptied(name: str, runtime: SlotRuntime) -> Taken:
    runtime.candidate.drop(EMPTIED_HERE, "somebody at the device has emptied the slot")
    return _taken(name, runtime.agent.reset())


def _taken(slot: str, asked: Asked) -> Taken:
    digest = asked.bundle.digest if asked.bundle else None
    version = asked.bundle.version if asked.bundle else None
    return Taken(
        slot=slot, ticket=asked.ticket, digest=digest, version=version, resumes=asked.resumes
    )


def _probation(seconds: float | None) -> Probation | None:
    if seconds is None:
        return None
    plain = Probation()
    return Probation(
        seconds=seconds,
        max_seconds=max(seconds, min(plain.max_seconds, 30 * seconds)),
        shadow_seconds=min(plain.shadow_seconds, seconds),
    )


def _refusal(status: int, code: str, blame: str, words: str) -> Response:
    return json_response({"error": words, "code": code, "blame": blame}, status)


def _blame(error: EdgepackError) -> str:
    match error:
        case BundleError():
            return "bundle"
        case SourceError():
            return "source"
        case ConfigError():
            return "config"
        case _:
            return "device"


async def _body(receive: Receive) -> bytes:
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > BODY_BYTES:
                    raise HttpError(413, f"a body has at most {BODY_BYTES} bytes here")
    except TimeoutError as error:
        raise HttpError(408, "the body did not arrive in time") from error
    return bytes(body)
