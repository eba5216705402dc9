"""Looking at a device: the parts of a running daemon, or its files, made into views."""

from __future__ import annotations

import os
from pathlib import Path

from edgepack_contract import __version__
from edgepack_contract.errors import EdgepackError
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import is_id
from edgepack_contract.small_files import read_small
from edgepack_runtime import machine_state
from edgepack_runtime.activation.journal import Journal
from edgepack_runtime.capture.recorder import Recorder
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.link import DeviceLink
from edgepack_runtime.local.view import (
    BrokerView,
    CaptureView,
    CertificateView,
    DaemonView,
    DeviceView,
    LiveView,
    SlotView,
    SpoolView,
    slot_view,
)
from edgepack_runtime.orders import Orders
from edgepack_runtime.reporter import Reporter
from edgepack_runtime.slot_runtime import SlotRuntime, now_ms
from edgepack_runtime.slot_table import SlotTable
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.trust import Trust


class Looker:
    """Shows a running daemon. Used on the event loop.

    Args:
        config: What the daemon was told.
        session: Which run this is.
        slots: The slots.
        orders: What is obeyed and refused.
        trust: Keyring and clock.
        reporter: What waits for the broker.
        link: The connection to it.
        recorder: What is captured.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        session: int,
        *,
        slots: SlotTable,
        orders: Orders,
        trust: Trust,
        reporter: Reporter,
        link: DeviceLink,
        recorder: Recorder,
    ) -> None:
        self._config, self._session, self._slots = config, session, slots
        self._orders, self._trust, self._reporter = orders, trust, reporter
        self._link, self._recorder = link, recorder
        self._started = now_ms()

    def view(self) -> DeviceView:
        """The device as it is now."""
        slots = [_live_slot(name, runtime) for name, runtime in sorted(self._slots)]
        return device_view(
            self._config, slots, connected=self._link.connected, daemon=self._daemon()
        )

    def _daemon(self) -> DaemonView:
        backlog, recorder = self._reporter.backlog, self._recorder
        return DaemonView(
            pid=os.getpid(),
            version=__version__,
            session=self._session,
            started=self._started,
            memory=machine_state.look(Path("/")).memory_rss_bytes,
            refused=self._orders.refused,
            keyring=self._trust.keyring.version,
            clock_behind=self._trust.clock.is_behind,
            spool=SpoolView(items=backlog.items, bytes=backlog.bytes, dropped=backlog.dropped),
            capture=CaptureView(
                share=recorder.config.share, kept=recorder.kept, dropped=recorder.dropped
            ),
        )


def device_view(
    config: RuntimeConfig,
    slots: list[SlotView],
    *,
    connected: bool | None = None,
    daemon: DaemonView | None = None,
) -> DeviceView:
    """A device of which the configuration is known.

    Args:
        config: Its configuration.
        slots: Its slots.
        connected: Whether its daemon is connected to the broker, None when none runs.
        daemon: What only its daemon knows.
    """
    machine = machine_state.look(Path(config.state_dir))
    return DeviceView(
        device=config.device,
        state_dir=config.state_dir,
        at=now_ms(),
        slots=slots,
        broker=BrokerView(address=f"{config.mqtt.host}:{config.mqtt.port}", connected=connected),
        certificates=certificates(config),
        disk_free=machine.disk_free_bytes,
        memory_available=machine.memory_available_bytes,
        cpu_celsius=machine.cpu_celsius,
        throttled=machine.throttled,
        daemon=daemon,
    )


def stored_slots(fs: DurableFS, state_dir: Path) -> list[SlotView]:
    """The slots of a device whose daemon does not run, from their records.

    Raises:
        PermissionError: They are somebody else's.
        DeviceError: The disk does not give them.
    """
    return [
        slot_view(folder.name, Journal(fs, folder).peek().state)
        for folder in slot_folders(state_dir)
    ]


def slot_folders(state_dir: Path) -> list[Path]:
    """The folders of a device's slots, by name.

    Raises:
        PermissionError: They are somebody else's.
    """
    folder = state_dir / "slots"
    found = folder.iterdir() if folder.exists() else ()
    return sorted(path for path in found if is_id(path.name))


def certificates(config: RuntimeConfig) -> list[CertificateView]:
    """When the certificates end that this device shows."""
    named = {
        "identity.certificate": config.identity.certificate,
        "serve.tls_certificate": config.serve.tls_certificate,
    }
    return [_certificate(what, path) for what, path in named.items() if path is not None]


def _certificate(what: str, path: str) -> CertificateView:
    # 3 MB, which a daemon that has no certificate and is not asked for one does without
    from edgepack_contract.certificates import read_certificate  # noqa: PLC0415

    try:
        found = read_certificate(read_small(Path(path), LIMITS.key_file_bytes))
    except (OSError, EdgepackError) as error:
        return CertificateView(what=what, path=path, problem=str(error))
    expires = int(found.not_valid_after_utc.timestamp() * 1000)
    return CertificateView(what=what, path=path, expires=expires)


def _live_slot(name: str, runtime: SlotRuntime) -> SlotView:
    agent, slot, tenure = runtime.agent, runtime.slot, runtime.slot.tenure
    live = LiveView(
        since=tenure.since_ms if tenure else None,
        last_prediction=slot.last_prediction_ms,
        requests=slot.totals.answered,
        errors=sum(slot.totals.errors.values()),
        in_flight=slot.in_flight,
        attended=agent.attended,
        factory_trouble=agent.factory_trouble,
    )
    return slot_view(name, agent.state, runtime.status(), live)
