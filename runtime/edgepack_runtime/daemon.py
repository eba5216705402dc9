"""The device daemon: puts the parts together, and takes them apart in order.

One event loop serves and closes windows; each slot has a thread that installs; paho and the spool
have a thread each. Nothing imports this module but the command.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgepack_contract.canonical import decode
from edgepack_contract.errors import DocumentError
from edgepack_contract.hardware import Hardware, this_machine
from edgepack_contract.keyring import Keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import (
    Desired,
    Event,
    EventKind,
    FleetState,
    SlotDesired,
)
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind, fleet_state_topic, keyring_topic, parse_topic
from edgepack_runtime import machine_state
from edgepack_runtime.capture.recorder import FOLDER, Recorder
from edgepack_runtime.capture.ring import clear
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.connections import broker, bundle_sources, renewer
from edgepack_runtime.errors import DeviceError, DiskFullError, StorageFaultError
from edgepack_runtime.handover import Handover
from edgepack_runtime.inference.session import onnxruntime_version
from edgepack_runtime.link import Asked, DeviceLink, LinkIdentity
from edgepack_runtime.local.control import Control
from edgepack_runtime.local.log_ring import LogRing
from edgepack_runtime.local.looking import Looker
from edgepack_runtime.membership.identity import DeviceIdentity
from edgepack_runtime.mqtt_predict import MqttPredictor
from edgepack_runtime.orders import Orders
from edgepack_runtime.reporter import Reporter, open_spool
from edgepack_runtime.serving.asgi import Asgi
from edgepack_runtime.slot_runtime import SlotRuntime, now_ms
from edgepack_runtime.slot_table import DeviceParts, SlotTable
from edgepack_runtime.statements import Statements
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.telemetry.backlog import Backlog
from edgepack_runtime.trust import Trust

logger = logging.getLogger(__name__)

SAY_AGAIN_SECONDS = 2.0


class Daemon:
    """One device's daemon.

    Args:
        config: What it was told.
        identity: Who it is.
        trust: Whom it believes.
        session: Which run this is, growing.
        fs: All file changes go through it.
        rng: Spreads what many devices would do at once.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        identity: DeviceIdentity,
        trust: Trust,
        *,
        session: int,
        fs: DurableFS,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._trust = trust
        self._session = session
        self._rng = rng
        self._home = Path(config.state_dir)
        self._loop = asyncio.get_running_loop()
        self._fleet_session = 0
        self._says_again = False
        self._without_room: dict[str, SlotDesired] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        machine = this_machine(onnxruntime=onnxruntime_version())
        who = identity.identity
        self._orders = Orders(
            trust,
            who,
            obey=self._obey,
            keyring_changed=self._keyring_changed,
            refusal_changed=self._refusal_changed,
            spawn=self._spawn,
        )
        self._link = self._make_link(identity)
        self.renewer = renewer(
            config, who, trust, self._orders, reconnect=self._link.reconnect, fs=fs, rng=rng
        )
        self.logs = LogRing()
        logging.getLogger().addHandler(self.logs)
        self._recorder = Recorder(
            self._home / FOLDER, config.capture, fs=DurableFS(), now_ms=now_ms, rng=rng
        )
        spool = open_spool(self._home / "spool.db", max_bytes=config.telemetry.spool_bytes)
        self._reporter = Reporter(spool, self._link, session=session, mac_key=identity.mac_key)
        self._sources = bundle_sources(config, identity, trust)
        parts = DeviceParts(
            config=config,
            identity=identity,
            trust=trust,
            machine=machine,
            session=session,
            fs=fs,
            rng=rng,
            reporter=self._reporter,
            open_source=self._sources.open,
            recorder=self._recorder,
        )
        self.slots = SlotTable(parts, changed=self._slot_changed)
        self._predictor = MqttPredictor(
            self.slots.serving,
            admits=lambda name: self._config.slot(name).by_mqtt,
            tenant=who.tenant,
            device=who.device,
            answer=self._link.answer,
            spawn=self._spawn,
            now_ms=now_ms,
        )
        self._statements = self._make_statements(machine)

    def _make_link(self, identity: DeviceIdentity) -> DeviceLink:
        who, config = identity.identity, self._config
        return DeviceLink(
            LinkIdentity(who.tenant, who.device, self._session, identity.mac_key),
            broker(config, self._trust),
            on_message=Handover(self._loop, self._take).put,
            on_connected=self._from_link_connected,
            rng=self._rng,
            now_ms=now_ms,
            on_refused=self._from_link_refused,
            on_request=self._from_link_request if _asked_by_mqtt(config) else None,
        )

    def _make_statements(self, machine: Hardware) -> Statements:
        return Statements(
            session=self._session,
            machine=machine,
            home=self._home,
            table=self.slots,
            orders=self._orders,
            trust=self._trust,
            reporter=self._reporter,
            sequence=self._link.next_sequence,
        )

    def control(self, app: Asgi) -> Control:
        """What answers on the control socket; ``app`` has health and metrics."""
        looker = Looker(
            self._config,
            self._session,
            slots=self.slots,
            orders=self._orders,
            trust=self._trust,
            reporter=self._reporter,
            link=self._link,
            recorder=self._recorder,
        )
        forget = partial(clear, DurableFS(), self._home / FOLDER)
        return Control(
            self.slots, self._trust, view=looker.view, forget=forget, logs=self.logs, app=app
        )

    def phase(self, slot: str) -> Phase | None:
        """Where a slot's install stands, for the health page."""
        runtime = self.slots.get(slot)
        return runtime.agent.state.phase if runtime else None

    @property
    def refusals(self) -> Mapping[str, int]:
        """How many documents were refused, by code."""
        return self._orders.counts

    @property
    def asked_by_mqtt(self) -> Mapping[str, int]:
        """How many requests came by the broker, by what became of them."""
        return self._predictor.counts

    def backlog(self) -> Backlog:
        """What waits to be sent to the fleet, as it was found last."""
        return self._reporter.backlog

    def open(self) -> None:
        """Take up every slot of the disk, so that whoever asks finds them, loaded or not yet."""
        self.slots.open_all()
        self._orders.obeyed = self.slots.obeyed()

    def start(self) -> None:
        """Connect; :meth:`open` comes before."""
        self._slot_changed()
        self._link.start()

    def reconfigure(self, config: RuntimeConfig) -> None:
        """Take up the settings that a running daemon can change, :data:`.reloading.LIVE`."""
        self._config = config
        self._sources.reconfigure(config.download)
        self._recorder.reconfigure(config.capture)
        self.slots.reconfigure(config)
        self.slots.settle_capture()

    async def run_windows(self) -> None:
        """Close windows at their period, for as long as the daemon runs."""
        due = self._loop.time()
        while True:
            due = max(due + self._config.telemetry.window_seconds, self._loop.time())
            await asyncio.sleep(due - self._loop.time())
            await self._close_windows()
            self._check_threads()
            self._orders.look_again()
            self._try_again()

    async def run_health(self) -> None:
        """Tell how the machine is, for as long as the daemon runs."""
        while True:
            self._statements.health()
            await asyncio.sleep(self._config.telemetry.health_seconds)

    async def stop(self) -> None:
        """Keep what was counted, end installs cleanly, say goodbye."""
        await self._close_windows()
        await self.slots.close()
        await asyncio.to_thread(self._link.stop)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._reporter.close)
        await asyncio.to_thread(self._recorder.close)
        logging.getLogger().removeHandler(self.logs)

    def _from_link_connected(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._reporter.connected()))

    def _from_link_request(self, asked: Asked) -> None:
        self._predictor.take(asked)

    def _from_link_refused(self) -> None:
        if self.renewer is not None:
            self._loop.call_soon_threadsafe(self.renewer.ask)

    def _take(self, text: str, payload: bytes) -> None:
        try:
            if text == fleet_state_topic(self._config.tenant):
                self._take_fleet_state(payload)
                return
            if text == keyring_topic(self._config.tenant):
                if payload:
                    self._orders.take_keyring(payload)
                return
            topic = parse_topic(text)
            if (topic.tenant, topic.device) != (self._config.tenant, self._config.device):
                # Some brokers hand retained messages of others to a client that reconnects.
                return
            if topic.kind == Kind.DESIRED and payload:
                self._orders.take_desired(payload)
            elif topic.kind == Kind.ACKED:
                self._spawn(self._reporter.acknowledged(topic, payload))
        except DocumentError as error:
            logger.warning(
                "message on %s ignored: %s", text, error, extra={"event": "message_ignored"}
            )

    def _take_fleet_state(self, payload: bytes) -> None:
        state = decode(payload, FleetState, what="fleet state", max_bytes=LIMITS.message_bytes)
        if state.session == self._fleet_session:
            return
        first, self._fleet_session = self._fleet_session == 0, state.session
        # It is not signed: whoever makes up fleets must not make this device flood the broker.
        if not first and not self._says_again:
            self._says_again = True
            # Every device hears this in the same instant.
            self._loop.call_later(self._rng.uniform(0, SAY_AGAIN_SECONDS), self._say_again)

    def _keyring_changed(self, before: Keyring) -> None:
        now = self._trust.keyring
        logger.info(
            "keyring version %d of epoch %d is in force", now.version, now.epoch,
            extra={"event": "keyring_changed"},
        )  # fmt: skip
        newly = set(now.revoked_digests) - set(before.revoked_digests)
        for name, runtime in self.slots:
            said = runtime.agent.status()
            if said.running in newly:
                self._tell(name, EventKind.VERIFY_FAILED, said.running, said.code, said.words)
        self.slots.drop_revoked(newly)
        self._statements.reported()

    def _obey(self, desired: Desired) -> None:
        self._without_room.clear()
        for name, wish in desired.slots.items():
            self._wish(name, wish)
        self._statements.reported()

    def _wish(self, name: str, wish: SlotDesired) -> None:
        self._without_room.pop(name, None)
        try:
            self.slots.wish(name, wish, self._orders.obeyed)
        except DiskFullError as error:
            self._without_room[name] = wish
            self._orders.refuse("desired", error.code, f"slot {name} waits for room: {error}")
        except OSError as error:
            # what could not be opened or listed just now; writing has errors of its own
            self._without_room[name] = wish
            code, words = StorageFaultError.default_code, f"slot {name} waits for its disk: {error}"
            self._orders.refuse("desired", code, words)
        except DeviceError as error:
            self._orders.refuse("desired", error.code, str(error))

    def _try_again(self) -> None:
        """Take up what found no room on the disk, if there is room by now."""
        try:
            self.slots.open_all()
        except DeviceError as error:
            words = "a slot cannot be taken up: %s"
            logger.warning(words, error, extra={"event": "slot_waits", "code": error.code})
        if not self._without_room:
            return
        for name, wish in list(self._without_room.items()):
            self._wish(name, wish)
        if not self._without_room:
            self._orders.settle("desired")

    def _refusal_changed(self) -> None:
        self._statements.refused()

    def _slot_changed(self) -> None:
        self._statements.birth()
        self._statements.reported()

    def _say_again(self) -> None:
        self._says_again = False
        self._say_everything()

    def _say_everything(self) -> None:
        self._slot_changed()
        self._spawn(self._reporter.connected())

    async def _close_windows(self) -> None:
        throttled = bool(machine_state.look(self._home).throttled)
        bodies = []
        for _, runtime in self.slots:
            bodies += runtime.slot.roll(probation=runtime.in_probation, throttled=throttled)
        await self._reporter.keep_windows(bodies)
        for name, runtime in self.slots:
            await self._judge_drift(name, runtime)

    async def _judge_drift(self, name: str, runtime: SlotRuntime) -> None:
        tenure = runtime.slot.tenure
        report = await runtime.newly_drifted()
        if tenure is not None and report is not None:
            digest, words = tenure.model.digest, "the input changed"
            evidence = report.evidence()
            self._tell(name, EventKind.DRIFT, digest, "input-changed", words, evidence=evidence)

    def _tell(
        self, slot: str, kind: EventKind, digest: str | None, code: str, words: str, **more: Any
    ) -> None:
        event = Event(
            session=self._session,
            sequence=0,
            at=now_ms(),
            slot=slot,
            kind=kind,
            digest=digest,
            code=code,
            words=words,
            **more,
        )
        self._reporter.keep_event(event)

    def _check_threads(self) -> None:
        dead = self.slots.dead()
        if dead:
            raise RuntimeError(f"the threads of slots {dead} ended; the daemon starts anew")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _asked_by_mqtt(config: RuntimeConfig) -> bool:
    return any(slot.by_mqtt for slot in config.slots.values())
