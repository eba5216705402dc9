"""Kills a process of the demo at a chosen moment: the story must end the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

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
    """Watches a rollout and kills once, with SIGKILL, when the moment has come."""

    def __init__(self, point: KillPoint | None = None) -> None:
        self._point = point
        self._done = False

    @property
    def killed_device(self) -> bool:
        """Whether a device daemon was killed, and lost the window that was open."""
        return self._done and self._point != KillPoint.FLEET_SOAK

    def ask(self, question: Callable[[], Any]) -> Any | None:
        """Ask the fleet; None while it is down because we killed it."""
        try:
            return question()
        except FleetUnreachableError:
            if self._done and self._point == KillPoint.FLEET_SOAK:
                return None
            raise

    def look(self, rollout: Mapping[str, Any], world: World) -> None:
        """Kill when this is the moment."""
        if self._point is None or self._done or rollout["version"] != VERSION:
            return
        if self._point == KillPoint.FLEET_SOAK:
            self._fleet(rollout, world)
            return
        wanted = INSTALLING if self._point == KillPoint.DEVICE_INSTALL else {"probation"}
        for device, update in rollout["updates"].items():
            if update["state"] in wanted:
                world.supervisor.kill(world.devices[device])
                self._done = True
                return

    def not_done(self) -> list[str]:
        """A complaint when the moment never came."""
        if self._point is None or self._done:
            return []
        return [f"nothing was killed: the moment {self._point} never came"]

    def _fleet(self, rollout: Mapping[str, Any], world: World) -> None:
        soaking = any(stage["state"] == "soaking" for stage in rollout["stages"])
        if soaking and world.fleet_child is not None:
            world.supervisor.kill(world.fleet_child)
            self._done = True
