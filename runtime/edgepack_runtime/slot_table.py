"""The slots of a device: opened from its disk and by wishes, each with its thread."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgepack_contract.hardware import Hardware
from edgepack_contract.instructions import Obeyed
from edgepack_contract.messages import SlotDesired
from edgepack_contract.names import is_id
from edgepack_runtime import machine_state
from edgepack_runtime.activation.agent import SlotAgent
from edgepack_runtime.activation.factory import SUFFIX
from edgepack_runtime.activation.history import History
from edgepack_runtime.activation.installer import Installer
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.activation.parts import SlotParts
from edgepack_runtime.activation.state import REVOKED
from edgepack_runtime.candidate_runtime import FOLDER, CandidateRuntime
from edgepack_runtime.capture.recorder import Recorder
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.errors import DeviceError, DiskFullError, StorageFaultError
from edgepack_runtime.membership.identity import DeviceIdentity
from edgepack_runtime.probing import probe_here
from edgepack_runtime.reporter import Reporter
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.serving_host import ActiveHost, CandidateHost, ServingHost
from edgepack_runtime.slot_runtime import SlotRuntime, now_ms
from edgepack_runtime.sources.source import Source
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.storage.store import Store
from edgepack_runtime.trust import Trust

logger = logging.getLogger(__name__)

PROBE_SECONDS = 120.0
MAX_SLOTS = 64


@dataclass(frozen=True, slots=True)
class DeviceParts:
    """What every slot of a device shares.

    Attributes:
        config: What the daemon was told.
        identity: Who the device is.
        trust: Whom it believes.
        machine: What it can run.
        session: Which run of the daemon this is.
        fs: All file changes go through it.
        rng: Spreads what many devices would do at once.
        reporter: Keeps what is to be told.
        open_source: From an address to a source of bundles.
        recorder: Captures what is asked and answered.
    """

    config: RuntimeConfig
    identity: DeviceIdentity
    trust: Trust
    machine: Hardware
    session: int
    fs: DurableFS
    rng: random.Random
    reporter: Reporter
    open_source: Callable[[str], Source]
    recorder: Recorder


class SlotTable:
    """The slots by name. Used on the event loop.

    Args:
        parts: What they share.
        changed: Called on the loop when the report of one changes.

    Attributes:
        serving: The serving side of each, for the HTTP application.
    """

    def __init__(self, parts: DeviceParts, *, changed: Callable[[], None]) -> None:
        self._parts, self._changed = parts, changed
        self._loop = asyncio.get_running_loop()
        self._folder = Path(parts.config.state_dir) / "slots"
        self._factory = Path(parts.config.factory) if parts.config.factory else None
        self._runtimes: dict[str, SlotRuntime] = {}
        self._closed = False
        self.serving: dict[str, Slot] = {}

    def __iter__(self) -> Iterator[tuple[str, SlotRuntime]]:
        return iter(list(self._runtimes.items()))

    def get(self, name: str) -> SlotRuntime | None:
        """A slot, None when there is none of that name."""
        return self._runtimes.get(name)

    def open_all(self) -> None:
        """Take up every slot of the disk, and those that have a factory bundle.

        One that finds no room for its folders stays away until the next call, and keeps no other
        from serving.

        Raises:
            DeviceError: The disk failed.
        """
        found = {path.name for path in _listed(self._folder)}
        if self._factory is not None:
            found |= {path.stem for path in _listed(self._factory) if path.suffix == SUFFIX}
        for name in sorted(name for name in found if is_id(name))[:MAX_SLOTS]:
            if name not in self._runtimes:
                self._open_if_room(name)

    def _open_if_room(self, name: str) -> None:
        try:
            self.open(name)
        except DiskFullError as error:
            logger.warning(
                "slot %s waits for room: %s", name, error,
                extra={"event": "slot_waits", "slot": name},
            )  # fmt: skip

    def obeyed(self) -> Obeyed:
        """The newest document that any slot has obeyed."""
        return max(
            (runtime.agent.obeyed for _, runtime in self),
            key=lambda one: (one.epoch, one.generation, one.issued),
            default=Obeyed(),
        )

    def wish(self, name: str, wish: SlotDesired, obeyed: Obeyed) -> None:
        """Hand a wish to a slot, which is made when there is none of that name.

        Raises:
            DeviceError: There can be no slot of that name (code ``bad-slot``), or no room for it.
        """
        runtime = self.at(name)
        runtime.alpha = wish.alpha
        try:
            # first, because what the active model takes over must not be let go of before
            runtime.candidate.wish(wish, obeyed)
        finally:
            runtime.agent.wish(wish, obeyed)

    def at(self, name: str) -> SlotRuntime:
        """The slot of a name, which is made when there is none.

        Raises:
            DeviceError: There can be no slot of that name (code ``bad-slot``), or no room for it.
        """
        if name not in self._runtimes and (not is_id(name) or len(self._runtimes) >= MAX_SLOTS):
            words = f"{name[:80]!r} is no name for a slot, or this device has {MAX_SLOTS}"
            raise DeviceError(words, code="bad-slot")
        return self._runtimes.get(name) or self.open(name)

    def reconfigure(self, config: RuntimeConfig) -> None:
        """Take up settings of slots; they count from the next model on that is loaded."""
        self._parts = replace(self._parts, config=config)
        for name, runtime in self:
            runtime.reconfigure(config.slot(name))

    def settle_capture(self) -> None:
        """Let every slot capture, or not, by what is in force now."""
        for _, runtime in self:
            self._capture_from(runtime.slot)

    def _capture_from(self, slot: Slot) -> None:
        recorder = self._parts.recorder
        slot.capture = recorder.for_slot(slot.name) if recorder.config.share else None

    def drop_revoked(self, digests: Collection[str]) -> None:
        """Let go of candidates that the owner has revoked: there is another model that answers."""
        for name, runtime in self:
            if runtime.candidate.wanted in digests:
                why = (REVOKED, "the owner has revoked this bundle")
                self._beside(name, partial(runtime.candidate.drop, *why))

    def dead(self) -> list[str]:
        """The slots whose threads have ended."""
        return [name for name, runtime in self if not runtime.alive]

    async def close(self) -> None:
        """End installs cleanly, and let go of the models; once."""
        if self._closed:
            return
        self._closed = True
        for _, runtime in self:
            await asyncio.to_thread(runtime.candidate.stop)
            await asyncio.to_thread(runtime.agent.stop)
            await runtime.slot.close()

    def open(self, name: str) -> SlotRuntime:
        """Take up a slot, or make it.

        Raises:
            DeviceError: No room for its folders, or the disk failed.
        """
        folder = self._folder / name
        self._parts.fs.make_dirs(folder)
        # before there are threads: without room this is tried again and again
        Store(self._parts.fs, folder).prepare()
        runtime = self._made(name, folder)
        self._capture_from(runtime.slot)
        runtime.agent.start()
        self._runtimes[name], self.serving[name] = runtime, runtime.slot
        self._beside(name, runtime.candidate.open)
        return runtime

    def _made(self, name: str, folder: Path) -> SlotRuntime:
        parts, settled = self._parts, self._parts.config.slot(name)
        slot = Slot(
            name,
            now_ms=now_ms,
            rng=parts.rng,
            most_waiting=parts.config.serve.waiting,
            batching=settled.batching,
        )
        around: dict[str, Any] = {
            "loop": self._loop,
            "session": parts.session,
            "keep_event": parts.reporter.keep_event,
            "changed": partial(self._slot_changed, name),
            "now_ms": now_ms,
            "threads": settled.threads,
        }

        def give_way(code: str, words: str) -> None:
            candidate.drop(code, words)

        host = ActiveHost(slot, give_way, **around)
        beside = CandidateHost(slot.candidate, lambda: candidate.wanted, **around)
        agent = self._agent(name, host, folder)
        candidate = CandidateRuntime(
            slot,
            agent,
            partial(self._agent, name, beside, folder / FOLDER, candidate=True),
            fs=parts.fs,
            folder=folder / FOLDER,
        )
        return SlotRuntime(slot, agent, host, beside, candidate)

    def _slot_changed(self, name: str) -> None:
        runtime = self._runtimes.get(name)
        if runtime is not None:
            self._beside(name, runtime.candidate.active_changed)
        self._changed()

    def _beside(self, name: str, work: Callable[[], None]) -> None:
        """Do something for a candidate; that it fails is nothing to the active model."""
        try:
            work()
        except DeviceError as error:
            logger.warning(
                "the candidate of slot %s stays as it is: %s", name, error,
                extra={"event": "candidate_stays", "slot": name, "code": error.code},
            )  # fmt: skip

    def _agent(
        self, name: str, host: ServingHost, folder: Path, *, candidate: bool = False
    ) -> SlotAgent:
        parts = self._parts
        parts.fs.make_dirs(folder)
        return SlotAgent(
            name,
            self._slot_parts(name, host, folder, candidate=candidate),
            boot_id=machine_state.boot_id(),
            owner=parts.config.identity.owner,
            enrolment=parts.identity.identity.enrolment,
        )

    def _slot_parts(
        self, name: str, host: ServingHost, folder: Path, *, candidate: bool
    ) -> SlotParts:
        parts, trust = self._parts, self._parts.trust
        store = Store(parts.fs, folder, device=self._folder)
        installer = Installer(
            store,
            open_source=parts.open_source,
            keyring=lambda: trust.keyring,
            hardware=parts.machine,
        )
        return SlotParts(
            journal=Journal(parts.fs, folder),
            history=History(parts.fs, folder),
            store=store,
            installer=installer,
            host=host,
            probe=lambda tried: probe_here(tried, timeout_s=PROBE_SECONDS, threads=host.threads),
            # what the active model of the slot owes, its candidate owes too
            floor_elsewhere=partial(self._floor_elsewhere, None if candidate else name),
            factory=None if candidate or not self._factory else self._factory / f"{name}{SUFFIX}",
        )

    def _floor_elsewhere(self, slot: str | None, bundle: str) -> int:
        epoch = self._parts.trust.keyring.epoch
        others = [runtime.agent.state for name, runtime in self if name != slot]
        return max((one.floor(bundle) for one in others if one.obeyed.epoch == epoch), default=0)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise StorageFaultError(f"cannot list {folder}: {error.strerror}") from error
