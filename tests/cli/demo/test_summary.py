"""What the demo says it showed: counted from the clients' records, never from hope."""

from __future__ import annotations

from edgepack_cli.demo.summary import (
    CrossCheck,
    Phase,
    Served,
    accuracy_by_phase,
    count_outcomes,
    cross_check,
    stage_times,
    traffic_text,
)

OLD, NEW = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
VERSIONS = {OLD: "1.0.0", NEW: "1.1.0"}


def test_requests_are_counted_and_blamed(answered, child_of):
    clients = [
        answered("a", (1, "served", "1.0.0", True), (2, "failed", "", False)),
        answered("b", (9.5, "down", "", False), (11, "down", "", False), (14, "down", "", False)),
    ]
    devices = {"a": child_of(), "b": child_of((10.0, 12.0))}
    served = count_outcomes(clients, devices)
    assert served == Served(1, 2, 2, ["a: at 2", "b: at 14"])


def test_a_device_that_nobody_killed_has_no_excuse(answered, child_of):
    served = count_outcomes([answered("a", (1, "down", "", False))], {"a": child_of()})
    assert (served.failed, served.refused) == (1, 0)


def test_a_real_failure_in_an_outage_is_still_a_failure(answered, child_of):
    client = answered("a", (11, "failed", "", False))
    assert count_outcomes([client], {"a": child_of((10.0, 12.0))}).failed == 1


def test_only_some_failures_are_told(answered, child_of):
    client = answered("a", *[(at, "failed", "", False) for at in range(20)])
    served = count_outcomes([client], {"a": child_of()})
    assert served.failed == 20
    assert len(served.failures) == 5


def test_accuracy_by_phase_and_version(answered):
    clients = [
        answered("a", (1, "served", "1.0.0", True), (2, "served", "1.0.0", True),
                 (5, "served", "1.1.0", False), (6, "failed", "", False)),
        answered("b", (3, "served", "1.0.0", False), (5, "served", "1.0.0", True),
                 (7, "served", "1.1.0", True)),
    ]  # fmt: skip
    phases = [Phase("first", 0, 5), Phase("second", 5, 7), Phase("empty", 8, 9)]
    assert accuracy_by_phase(clients, phases).splitlines() == [
        "WHEN    VERSION  ANSWERS  RIGHT",
        "first   1.0.0    3        66.7 %",
        "second  1.0.0    1        100.0 %",
        "second  1.1.0    1        0.0 %",
    ]


def test_the_cross_check_compares_by_version(answered):
    clients = [
        answered("a", (1, "served", "1.0.0", True), (2, "served", "1.1.0", True)),
        answered("b", (1, "served", "1.0.0", True), (2, "down", "", False)),
    ]
    stats = [{"digest": OLD, "n": 1}, {"digest": OLD, "n": 1}, {"digest": NEW, "n": 1},
             {"digest": NEW, "n": 0}]  # fmt: skip
    checked = cross_check(clients, stats, VERSIONS)
    assert checked == CrossCheck({"1.0.0": 2, "1.1.0": 1}, {"1.0.0": 2, "1.1.0": 1})
    assert checked.equal
    assert checked.agrees(lost=0)


def test_the_cross_check_sees_what_differs(answered):
    client = answered("a", (1, "served", "1.0.0", True), (2, "served", "1.0.0", True))
    less = cross_check([client], [{"digest": OLD, "n": 1}], VERSIONS)
    assert [less.agrees(lost=lost) for lost in (0, 1, 2)] == [False, True, True]
    more = cross_check([client], [{"digest": OLD, "n": 3}], VERSIONS)
    swapped = cross_check([client], [{"digest": NEW, "n": 2}], VERSIONS)
    unknown = cross_check([client], [{"digest": "sha256:0", "n": 2}], VERSIONS)
    assert unknown.telemetry == {"unknown": 2}
    for checked in (more, swapped, unknown):
        assert not checked.equal
        assert not checked.agrees(lost=100)


def test_stage_times():
    def stage(target, devices, state, opened=None, finished=None):
        return {"target": target, "devices": devices, "state": state, "opened_ms": opened,
                "finished_ms": finished}  # fmt: skip

    stages = [stage("1", ["a"], "passed", 1000, 3500), stage("100%", ["b", "c"], "waiting")]
    text = stage_times([{"version": "1.0.0", "stages": stages}])
    assert text.splitlines() == [
        "VERSION  STAGE  DEVICES ADDED  STATE    TOOK",
        "1.0.0    1      1              passed   2.5 s",
        "1.0.0    100%   2              waiting  -",
    ]


def test_traffic():
    assert traffic_text({"from devices": 2048, "to devices": 10}) == (
        "MQTT payloads: 2.0 KiB from devices, 10 B to devices"
    )
