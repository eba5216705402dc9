"""Whom the demo kills, when, and in which order."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from edgepack_cli.demo.kills import INSTALLING, VERSION, Killer, KillPoint
from edgepack_cli.errors import FleetRefusedError, FleetUnreachableError


class World:
    """Devices and a fleet that can only be killed."""

    def __init__(self):
        self.killed = []
        self.devices = {name: name for name in ("a", "b", "c")}
        self.fleet_child = "fleet"
        self.supervisor = SimpleNamespace(kill=self.killed.append)


def rollout(*stages, version=VERSION, **updates):
    devices = iter(["a"]), iter(["b", "c"]), iter([])
    return {
        "version": version,
        "stages": [
            {"state": state, "devices": list(own)}
            for state, own in zip(stages, devices, strict=False)
        ],
        "updates": {name: {"state": updates.get(name, "pending")} for name in ("a", "b", "c")},
    }


@pytest.fixture
def world():
    return World()


@pytest.mark.parametrize(
    ("point", "document", "victim"),
    [
        *(
            (KillPoint.DEVICE_INSTALL, rollout("deploying", a=state), "a")
            for state in sorted(INSTALLING)
        ),
        (KillPoint.DEVICE_PROBATION, rollout("deploying", a="probation"), "a"),
        (KillPoint.DEVICE_PROBATION, rollout("passed", "deploying", c="probation"), "c"),
        (KillPoint.FLEET_SOAK, rollout("soaking", a="succeeded"), "fleet"),
        (KillPoint.FLEET_SOAK, rollout("passed", "soaking"), "fleet"),
    ],
)
def test_each_point_has_its_moment(world, point, document, victim):
    killer = Killer(point)
    assert len(killer.not_done()) == 1
    assert point in killer.not_done()[0]
    killer.look(document, world)
    assert world.killed == [victim]
    assert killer.not_done() == []
    killer.look(document, world)
    assert world.killed == [victim]
    assert killer.killed_devices == (victim != "fleet")


@pytest.mark.parametrize(
    ("point", "document"),
    [
        (KillPoint.DEVICE_INSTALL, rollout("deploying", a="pending")),
        (KillPoint.DEVICE_INSTALL, rollout("deploying", a="probation")),
        (KillPoint.DEVICE_INSTALL, rollout("deploying", a="downloading", version="1.0.0")),
        (KillPoint.DEVICE_PROBATION, rollout("deploying", a="activating")),
        (KillPoint.FLEET_SOAK, rollout("deploying", a="succeeded")),
        (KillPoint.FLEET_SOAK, rollout("soaking", version="1.2.0")),
    ],
)
def test_no_other_moment_will_do(world, point, document):
    killer = Killer(point)
    killer.look(document, world)
    assert world.killed == []
    assert killer.not_done()


def test_every_kill_has_a_stage_of_its_own_in_a_fixed_order(world):
    killer = Killer(*reversed(KillPoint))
    story = [
        rollout("deploying", "waiting", "waiting", a="downloading"),
        rollout("deploying", "waiting", "waiting", a="probation"),  # the stage had its kill
        rollout("soaking", "waiting", "waiting"),
        rollout("passed", "deploying", "waiting", c="probation"),
        rollout("passed", "soaking", "waiting"),
        rollout("passed", "passed", "soaking"),
    ]
    seen = []
    for document in story:
        killer.look(document, world)
        seen.append(list(world.killed))
    assert seen == [["a"], ["a"], ["a"], ["a", "c"], ["a", "c"], ["a", "c", "fleet"]]
    assert killer.not_done() == []


@pytest.mark.parametrize("points", list(itertools.combinations(KillPoint, 2)))
def test_two_kills_need_two_stages(world, points):
    killer = Killer(*points)
    both = rollout("soaking", "waiting", a="probation", b="pending")
    both["updates"]["a"]["state"] = "downloading" if points[0] == "device-install" else "probation"
    killer.look(both, world)
    killer.look(both, world)
    assert len(world.killed) == 1


def test_the_fleet_is_only_missed_without_harm_when_it_was_killed(world):
    def down():
        raise FleetUnreachableError("gone")

    def refused():
        raise FleetRefusedError("no", status=403)

    killer = Killer(KillPoint.FLEET_SOAK)
    with pytest.raises(FleetUnreachableError):
        killer.ask(down)
    killer.look(rollout("soaking"), world)
    assert killer.ask(down) is None
    assert killer.ask(lambda: 7) == 7
    with pytest.raises(FleetRefusedError):
        killer.ask(refused)


def test_nothing_asked_is_nothing_killed(world):
    killer = Killer()
    killer.look(rollout("soaking", a="downloading"), world)
    assert world.killed == killer.not_done() == []
