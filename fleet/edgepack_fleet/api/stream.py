"""The stream of changes: server-sent events with the devices and the rollouts as they are now.

Every event is a whole snapshot, so that a client which missed some needs no history. Its id names
the content of both kinds; a client that reconnects with ``Last-Event-ID`` gets what has changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from edgepack_fleet import devices, rollouts
from edgepack_fleet.api.access import AsViewer, authenticate
from edgepack_fleet.api.context import Context, Here
from edgepack_fleet.api.devices import lease_ms
from edgepack_fleet.api.problems import UnauthenticatedError
from edgepack_fleet.api.views import rollout_view

router = APIRouter(prefix="/api/v1/stream", tags=["stream"])

INTERVAL_SECONDS = 0.5
HEARTBEAT_SECONDS = 10.0
MAX_DEVICES = 1000
MAX_ROLLOUTS = 5


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of event: ``mark`` changes with ``items``, JSON of a list."""

    kind: str
    mark: str
    items: bytes


class Feed:
    """The newest snapshot, taken at most once per interval however many clients follow it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._taken_at = -INTERVAL_SECONDS
        self._snapshot: tuple[int, tuple[Part, ...]] = (0, ())

    def current(self) -> tuple[int, tuple[Part, ...]]:
        """When the snapshot was taken, milliseconds since 1970 UTC, and its parts."""
        with self._lock:
            # the wall clock may stand still or jump; how old a snapshot is must not depend on it
            if time.monotonic() - self._taken_at >= INTERVAL_SECONDS:
                now_ms = self._context.now_ms()
                self._snapshot = (now_ms, _take(self._context, now_ms))
                self._taken_at = time.monotonic()
            return self._snapshot


@router.get("", response_class=StreamingResponse)
def stream(_: AsViewer, here: Here, request: Request) -> StreamingResponse:
    """Server-sent events `devices` and `rollouts`, each a full snapshot, whenever one changes.

    It ends when the token or the login does, and when the service stops.
    """
    feed = request.app.state.feed
    known = request.headers.get("last-event-id", "")

    def is_over() -> bool:
        try:
            authenticate(request)
        except UnauthenticatedError:
            return True
        return here.is_stopping()

    return StreamingResponse(_follow(feed, known, is_over), media_type="text/event-stream")


async def _follow(feed: Feed, known: str, is_over: Callable[[], bool]) -> AsyncIterator[bytes]:
    sent = set(known.split("."))
    silent = 0.0
    yield b"retry: 2000\n\n"
    while not await run_in_threadpool(is_over):
        taken_ms, parts = await run_in_threadpool(feed.current)
        frames = _frames(taken_ms, parts, sent)
        sent = {part.mark for part in parts}
        silent = 0.0 if frames else silent + INTERVAL_SECONDS
        if silent >= HEARTBEAT_SECONDS:
            frames, silent = b": still here\n\n", 0.0
        if frames:
            yield frames
        await asyncio.sleep(INTERVAL_SECONDS)


def _frames(taken_ms: int, parts: tuple[Part, ...], sent: set[str]) -> bytes:
    frames = []
    has = set(sent)
    for part in parts:
        if part.mark in sent:
            continue
        # an id names no more than what a client has that lost the connection right behind it
        has.add(part.mark)
        identifier = ".".join(one.mark for one in parts if one.mark in has)
        head = f"event: {part.kind}\nid: {identifier}\n"
        body = b'data: {"now_ms":%d,"items":%b}\n\n' % (taken_ms, part.items)
        frames.append(head.encode() + body)
    return b"".join(frames)


def _take(context: Context, now_ms: int) -> tuple[Part, ...]:
    with context.database.read() as session:
        views = devices.list_devices(
            session, now_ms=now_ms, lease_ms=lease_ms(context), limit=MAX_DEVICES
        )
        recent = rollouts.list_rollouts(session, limit=MAX_ROLLOUTS)
    shown = [rollout_view(one, now_ms) for one in recent]
    return (_part("devices", views), _part("rollouts", shown))


def _part(kind: str, items: object) -> Part:
    raw = msgspec.json.encode(items)
    return Part(kind, hashlib.sha256(raw).hexdigest()[:16], raw)
