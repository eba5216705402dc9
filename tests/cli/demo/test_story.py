"""The demo tells the truth about itself: whatever did not come true is said and fails it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgepack_cli.demo.kills import Killer, KillPoint
from edgepack_cli.demo.story import LOST_PER_KILL, Story
from edgepack_cli.demo.summary import CrossCheck, Served

GOOD = Served(served=100, failed=0, refused=0, failures=[])
EQUAL = CrossCheck({"1.0.0": 60, "1.1.0": 40}, {"1.0.0": 60, "1.1.0": 40})
LESS = CrossCheck({"1.0.0": 60, "1.1.0": 40}, {"1.0.0": 58, "1.1.0": 40})
TOO_MUCH = CrossCheck({"1.0.0": 60 + LOST_PER_KILL}, {"1.0.0": 59})
MORE = CrossCheck({"1.0.0": 60, "1.1.0": 40}, {"1.0.0": 62, "1.1.0": 40})


def story(*ends, running="1.1.0", control=False, killer=None):
    """A story whose rollouts ended so, and whose two devices run this version."""
    slot = None if running is None else {"digits": {"version": running}}
    devices = [{"id": "gateway-1", "slots": slot}, {"id": "gateway-2", "slots": slot}]
    world = SimpleNamespace(api=SimpleNamespace(items=lambda _path: devices))
    told = Story(world, lambda _words: None, control=control, seed=1, killer=killer or Killer())
    versions = ("1.0.0", "1.1.0", "1.2.0")
    told.rollouts = [
        {"version": version, "state": state, "reason": "because"}
        for version, state in zip(versions, ends, strict=True)
    ]
    return told


def test_all_came_true():
    assert story("completed", "completed", "rolled_back")._untrue(GOOD, EQUAL) == []
    control = story("completed", "completed", "completed", running="1.2.0", control=True)
    assert control._untrue(GOOD, EQUAL) == []


@pytest.mark.parametrize(
    ("ends", "control", "words"),
    [
        (("paused", "completed", "rolled_back"), False, "1.0.0 is paused, expected completed"),
        (("completed", "rolled_back", "rolled_back"), False, "1.1.0 is rolled_back, expected"),
        (("completed", "completed", "completed"), False, "1.2.0 is completed, expected rolled_"),
        (("completed", "completed", "rolled_back"), True, "1.2.0 is rolled_back, expected compl"),
    ],
)
def test_a_rollout_that_ends_otherwise_is_untrue(ends, control, words):
    (said,) = story(*ends, running="1.2.0" if control else "1.1.0", control=control)._untrue(
        GOOD, EQUAL
    )
    assert words in said
    assert said.endswith(": because")


ENDS = ("completed", "completed", "rolled_back")


@pytest.mark.parametrize("running", ["1.0.0", "1.2.0", None])
def test_a_device_that_runs_something_else_is_untrue(running):
    assert story(*ENDS, running=running)._untrue(GOOD, EQUAL) == [
        f"gateway-1 runs {running}, expected 1.1.0",
        f"gateway-2 runs {running}, expected 1.1.0",
    ]


def test_a_failed_request_is_untrue():
    served = Served(100, 1, 0, ["gateway-1: 500: no memory"])
    assert story(*ENDS)._untrue(served, EQUAL) == ["1 requests failed: gateway-1: 500: no memory"]


@pytest.mark.parametrize("checked", [LESS, MORE])
def test_telemetry_that_says_something_else_is_untrue(checked):
    (said,) = story(*ENDS)._untrue(GOOD, checked)
    assert said.startswith("telemetry says {")


class KilledADevice(Killer):
    killed_devices = 1


def test_a_killed_daemon_may_lose_its_open_window_but_never_invent_one():
    assert story(*ENDS, killer=KilledADevice())._untrue(GOOD, LESS) == []
    for checked in (MORE, TOO_MUCH):
        (said,) = story(*ENDS, killer=KilledADevice())._untrue(GOOD, checked)
        assert said.startswith("telemetry says {")


def test_a_kill_that_never_came_is_untrue():
    (said,) = story(*ENDS, killer=Killer(KillPoint.FLEET_SOAK))._untrue(GOOD, EQUAL)
    assert "fleet-soak never came" in said


def test_progress_is_told_once():
    told = story(*ENDS)
    said = []
    told.say = said.append
    stages = [{"index": 0, "target": "1", "state": "soaking"},
              {"index": 1, "target": "100%", "state": "waiting"}]  # fmt: skip
    shown = []
    for state in ("running", "running", "rolling_back", "rolling_back"):
        told._progress({"state": state, "stages": stages}, shown)
    assert [line.split("] ")[1] for line in said] == [
        "  stage 1 (1): soaking", "  rollout: rolling_back",
    ]  # fmt: skip
