"""Kills a process of the demo at a chosen moment: the story must end the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from edgepack_cli.demo.supervisor import Child
from edgepack_cli.errors import FleetUnreachableError

if TYPE_CHECKING:
    from edgepack_cli.demo.world import World

VERSION = "1.1.0"
"""The rollout in which the kill happens."""


class KillPoint(StrEnum):
    """Whom to kill, and when."""

    DEVICE_INSTALL = "device-install"
    DEVICE_PROBATION = "device-probation"
    FLEET_SOAK = "fleet-soak"


INSTALLING = frozenset({"offered", "downloading", "verified", "probing", "activating"})


class Killer:
    """Watches a rollout and kills with SIGKILL when a moment has come, once for each moment.

    The moments come in different stages where more than one is asked for, so that no kill hides
    another: the order of :class:`KillPoint` is the order of the stages.
    """

    def __init__(self, *points: KillPoint) -> None:
        self._waiting = [point for point in KillPoint if point in points]
        self._killed: list[KillPoint] = []

    @property
    def killed_devices(self) -> int:
        """How many device daemons were killed; each lost the window that was open."""
        return sum(point != KillPoint.FLEET_SOAK for point in self._killed)

    def ask(self, question: Callable[[], Any]) -> Any | None:
        """Ask the fleet; None while it is down because we killed it."""
        try:
            return question()
        except FleetUnreachableError:
            if KillPoint.FLEET_SOAK in self._killed:
                return None
            raise

    def look(self, rollout: Mapping[str, Any], world: World) -> None:
        """Kill when this is the moment."""
        if not self._waiting or rollout["version"] != VERSION:
            return
        point = self._waiting[0]
        for stage in rollout["stages"][len(self._killed) :]:
            victim = _victim(point, stage, rollout["updates"], world)
            if victim is not None:
                world.supervisor.kill(victim)
                self._killed.append(self._waiting.pop(0))
                return

    def not_done(self) -> list[str]:
        """A complaint for every moment that never came."""
        return [f"nothing was killed: the moment {point} never came" for point in self._waiting]


def _victim(
    point: KillPoint, stage: Mapping[str, Any], updates: Mapping[str, Any], world: World
) -> Child | None:
    if point == KillPoint.FLEET_SOAK:
        return world.fleet_child if stage["state"] == "soaking" else None
    wanted = INSTALLING if point == KillPoint.DEVICE_INSTALL else {"probation"}
    devices = [one for one in stage["devices"] if updates[one]["state"] in wanted]
    return world.devices[devices[0]] if devices else None
