"""What a device says of itself: birth, reported state, health. Used on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from edgepack_contract import __version__
from edgepack_contract.hardware import Hardware
from edgepack_contract.messages import Birth, Health, Reported
from edgepack_contract.topics import Kind
from edgepack_runtime import machine_state
from edgepack_runtime.orders import Orders
from edgepack_runtime.reporter import Reporter
from edgepack_runtime.slot_runtime import now_ms
from edgepack_runtime.slot_table import SlotTable
from edgepack_runtime.trust import Trust

SAY_REFUSED_SECONDS = 0.2
CAPABILITIES = ["reverse-shadow", "shadow", "split"]


class Statements:
    """Makes the messages and hands them over.

    Args:
        session: Which run of the daemon this is.
        machine: What the device can run.
        home: The state folder, whose disk is looked at.
        table: The slots.
        orders: What is obeyed and what is refused.
        trust: The keyring in force.
        reporter: Where messages go.
        sequence: The next number of a message.
    """

    def __init__(
        self,
        *,
        session: int,
        machine: Hardware,
        home: Path,
        table: SlotTable,
        orders: Orders,
        trust: Trust,
        reporter: Reporter,
        sequence: Callable[[], int],
    ) -> None:
        self._session, self._machine, self._home = session, machine, home
        self._table, self._orders, self._trust = table, orders, trust
        self._reporter, self._sequence = reporter, sequence
        self._saying_refused = False

    def birth(self) -> None:
        """Say what stays the same for a session, and which bundles answer."""
        born = {name: runtime.birth() for name, runtime in self._table}
        message = Birth(
            session=self._session,
            sequence=self._sequence(),
            at=now_ms(),
            daemon=__version__,
            hardware=self._machine,
            onnxruntime=self._machine.onnxruntime,
            slots={name: one for name, one in born.items() if one},
            capabilities=CAPABILITIES,
        )
        self._reporter.say(Kind.BIRTH, message)

    def reported(self) -> None:
        """Say how every slot is."""
        message = Reported(
            session=self._session,
            sequence=self._sequence(),
            at=now_ms(),
            epoch=self._orders.obeyed.epoch,
            generation=self._orders.obeyed.generation,
            slots={name: runtime.status() for name, runtime in self._table},
            refused=self._orders.refused,
            keyring=self._trust.keyring.version,
        )
        self._reporter.say(Kind.REPORTED, message)

    def refused(self) -> None:
        """Say what is refused, soon.

        A flood of different forgeries must not make this device flood the broker either.
        """
        if not self._saying_refused:
            self._saying_refused = True
            asyncio.get_running_loop().call_later(SAY_REFUSED_SECONDS, self._refused_said)

    def health(self) -> None:
        """Say how the machine is, if anybody listens."""
        state = machine_state.look(self._home)
        message = Health(
            session=self._session,
            sequence=self._sequence(),
            at=now_ms(),
            cpu_celsius=state.cpu_celsius,
            throttled=state.throttled,
            memory_available_bytes=state.memory_available_bytes,
            memory_rss_bytes=state.memory_rss_bytes,
            disk_free_bytes=state.disk_free_bytes,
            spool_items=self._reporter.backlog.items,
        )
        self._reporter.mention(Kind.HEALTH, message)

    def _refused_said(self) -> None:
        self._saying_refused = False
        self.reported()
