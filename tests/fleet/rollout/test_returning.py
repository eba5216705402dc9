"""What `plan` says cannot be undone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.rollout.returning import SHOWN, WayBack, below_floor, warnings

NEW, OLD = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


def way(device="pi-1", **changes):
    return WayBack(device, **{"running": OLD, "version": "1.0.0", "security_version": 3} | changes)


def test_nothing_is_said_when_everything_can_be_undone():
    assert warnings(3, NEW, [way(), way("pi-2", security_version=4)]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"running": None, "security_version": None}, "nothing runs there now"),
        (
            {"refusal": "revoked by keyring version 7"},
            "installed again (revoked by keyring version",
        ),
        ({"security_version": None}, "the store has not got what runs there now"),
        ({"security_version": 2}, "rises to security version 3"),
    ],
)
def test_each_reason_in_words(changes, words):
    (said,) = warnings(3, NEW, [way(), way("pi-2", **changes)])
    assert said.startswith("1 device (pi-2) can")
    assert words in said


def test_a_device_that_runs_it_already_loses_nothing():
    assert warnings(9, NEW, [way(running=NEW, security_version=9)]) == []


def test_many_devices_are_counted_and_some_named():
    (said,) = warnings(9, NEW, [way(f"pi-{number}") for number in range(SHOWN + 2)])
    assert said.startswith("7 devices (pi-0, pi-1, pi-2, pi-3, pi-4 and 2 more) can be rolled")


def test_below_the_floor_of_a_device():
    found = below_floor(3, NEW, [way(), way("pi-2", floor=4), way("pi-3", floor=4, running=NEW)])
    assert list(found) == ["pi-2"]
    assert "security version 4" in found["pi-2"]
    assert "this bundle has 3" in found["pi-2"]


WAYS = st.builds(
    WayBack,
    device=st.text("abc", min_size=1),
    running=st.sampled_from([None, OLD, NEW]),
    security_version=st.none() | st.integers(0, 5),
    refusal=st.none() | st.just("revoked"),
    floor=st.integers(0, 5),
)


@given(st.lists(WAYS, max_size=8), st.integers(0, 5))
def test_nobody_is_warned_of_twice_and_nobody_at_risk_is_left_out(ways, security_version):
    said = warnings(security_version, NEW, ways)
    warned = sum(int(sentence.split()[0]) for sentence in said)
    at_risk = [
        one
        for one in ways
        if one.running != NEW
        and (
            one.running is None
            or one.refusal
            or one.security_version is None
            or one.security_version < security_version
        )
    ]
    assert warned == len(at_risk)
