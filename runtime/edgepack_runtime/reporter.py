"""What the device says: windows and events through the spool, state as retained messages.

Used on the event loop; the spool, whose commits wait for the disk, has a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.errors import DocumentError
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Acked, Event
from edgepack_contract.sealing import unseal
from edgepack_contract.topics import Kind, Topic
from edgepack_contract.window import WindowBody
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.link import DeviceLink
from edgepack_runtime.telemetry.backlog import Backlog
from edgepack_runtime.telemetry.spool import DAMAGED, Spool, SpoolError

logger = logging.getLogger(__name__)

T = TypeVar("T")

KINDS = {"window": Kind.TELEMETRY, "event": Kind.EVENT}
MEMORY_BYTES = 4 * 1024 * 1024
"""How much may wait in memory when the disk cannot have it."""


def open_spool(path: Path, *, max_bytes: int) -> Spool:
    """Open the spool, or what can stand in for it: telemetry never keeps a device from serving.

    A damaged file is moved aside and a new one begun. When the disk takes neither, what is to be
    said waits in memory, until the daemon ends.
    """
    try:
        return Spool(path, max_bytes=max_bytes)
    except SpoolError as error:
        logger.error("spool: %s", error, extra={"event": "spool_failed"})
        if error.code == DAMAGED:
            with suppress(SpoolError, OSError):
                return _begin_anew(path, max_bytes)
    return Spool(Path(":memory:"), max_bytes=min(max_bytes, MEMORY_BYTES))


def _begin_anew(path: Path, max_bytes: int) -> Spool:
    path.replace(path.with_name(f"{path.name}.damaged"))
    # a log that outlived its database would be replayed into the new one
    path.with_name(f"{path.name}-wal").unlink(missing_ok=True)
    return Spool(path, max_bytes=max_bytes)


class Reporter:
    """Keeps what is to be said until the fleet has it.

    Args:
        spool: Where it waits.
        link: Where it goes.
        session: This run of the daemon.
        mac_key: Proves acknowledgements.
    """

    def __init__(self, spool: Spool, link: DeviceLink, *, session: int, mac_key: bytes) -> None:
        self._spool = spool
        self._link = link
        self._session = session
        self._mac_key = mac_key
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._pumping = asyncio.Lock()
        self.backlog = Backlog(items=0, handed=0, bytes=0, dropped=0)

    async def keep_windows(self, bodies: Sequence[WindowBody]) -> None:
        """Keep closed windows and send what may be sent."""
        for body in bodies:
            await self._on_disk(partial(self._spool.append_window, self._session, body))
        await self.pump()

    def keep_event(self, event: Event) -> Future[int]:
        """Keep an event; from any thread. The result is there when it is durable."""
        return self._disk.submit(self._spool.append_event, event)

    async def pump(self) -> None:
        """Hand over what may be in flight, oldest first."""
        if not self._link.connected:
            return
        async with self._pumping:
            items = await self._on_disk(self._spool.hand_over) or []
            for item in items:
                if not self._link.send(KINDS[item.kind], item.name, item.body, qos=1):
                    # Nothing is lost: what is unacknowledged is handed over again later.
                    await self._on_disk(self._spool.forget_in_flight)
                    break
            self.backlog = await self._on_disk(self._spool.backlog) or self.backlog

    async def connected(self) -> None:
        """Begin anew with what is unacknowledged: the former connection's is uncertain."""
        await self._on_disk(self._spool.forget_in_flight)
        await self.pump()

    async def acknowledged(self, topic: Topic, raw: bytes) -> None:
        """Take the fleet's word that it has committed a part of a slot's sequence."""
        try:
            body = unseal(raw, topic=str(topic), key=self._mac_key, max_bytes=LIMITS.message_bytes)
            acked = decode(body, Acked, what="acknowledgement", max_bytes=LIMITS.message_bytes)
        except DocumentError as error:
            logger.warning("acknowledgement ignored: %s", error, extra={"event": "ack_ignored"})
            return
        slot = topic.name or ""
        await self._on_disk(partial(self._spool.acknowledge, slot, acked.session, acked.through))
        await self.pump()

    def say(self, kind: Kind, message: object) -> None:
        """Publish a retained message now and after every reconnect."""
        self._link.retain(kind, canonical_json(message))

    def mention(self, kind: Kind, message: object) -> None:
        """Publish once at QoS 0, if there is a connection."""
        self._link.send(kind, None, canonical_json(message), qos=0)

    def close(self) -> None:
        """Wait for the disk and close the spool."""
        self._disk.shutdown()
        self._spool.close()

    async def _on_disk(self, work: Callable[[], T]) -> T | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, work)
        except DeviceError as error:
            # A full disk costs telemetry, never predictions.
            logger.error("spool: %s", error, extra={"event": "spool_failed"})
            return None
