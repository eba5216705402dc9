"""Totals of telemetry: exact sums per device and bundle, quantiles from merged histograms."""

from __future__ import annotations

import msgspec
import pytest
from fleet_http import START_MS, open_fleet

from edgepack_contract.latency import LatencyHistogram
from edgepack_contract.window import OutputColumns, WindowBody, place
from edgepack_fleet.db.schema import Gap
from edgepack_fleet.telemetry import Taken, store_window

OLD, NEW = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        fleet.add_device("pi-1")
        fleet.add_device("pi-2")
        yield fleet


def window(device, number, digest, *, slot="digits", ms=2.0, n=40, errors=1, last=None):
    latency = LatencyHistogram()
    for _ in range(n):
        latency.add(ms / 1e3)
    start = START_MS + number * 1000
    body = WindowBody(
        slot=slot, bundle=digest, reference=None, start_ms=start, end_ms=start + 1000, n=n,
        rows=n, errors=errors, errors_by_kind={"backend": errors} if errors else {},
        latency=latency.columns(), outputs=OutputColumns(classes=[n - 1, 1]),
    )  # fmt: skip
    return device, place(body, session=1, first=number, last=last or number)


def keep(fleet, *windows):
    with fleet.context.database.write() as session:
        for device, one in windows:
            raw = msgspec.json.encode(one)
            taken = store_window(session, device, one, raw, offset_ms=0, now_ms=START_MS)
            assert taken is Taken.NEW


def stats(fleet, query=""):
    answer = fleet.client("viewer").get(f"/api/v1/stats{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def test_sums_are_per_device_and_bundle(fleet):
    keep(
        fleet, window("pi-1", 1, OLD), window("pi-1", 2, OLD), window("pi-1", 3, NEW, errors=0),
        window("pi-2", 1, OLD, n=10, last=3),
    )  # fmt: skip
    rows = {(row["device"], row["digest"]): row for row in stats(fleet)}
    assert set(rows) == {("pi-1", OLD), ("pi-1", NEW), ("pi-2", OLD)}
    old = rows["pi-1", OLD]
    assert (old["n"], old["rows"], old["errors"], old["windows"]) == (80, 80, 2, 2)
    assert rows["pi-1", NEW]["errors"] == 0
    assert rows["pi-2", OLD]["windows"] == 3, "a merged window counts as the ones in it"
    assert old["p50_ms"] is None


def test_details_are_merged_histograms(fleet):
    keep(fleet, window("pi-1", 1, OLD, ms=2.0), window("pi-1", 2, OLD, ms=100.0, n=400))
    (row,) = stats(fleet, "?detail=true")
    assert row["p95_ms"] == pytest.approx(100.0, rel=0.022)
    assert row["classes"] == [438, 2]


def test_slot_and_time_narrow_it(fleet):
    keep(fleet, window("pi-1", 1, OLD), window("pi-1", 5, OLD))
    keep(fleet, window("pi-1", 1, NEW, slot="other"))
    assert {row["digest"] for row in stats(fleet, "?slot=digits")} == {OLD}
    (row,) = stats(fleet, f"?slot=digits&since_ms={START_MS + 5000}")
    assert row["n"] == 40
    assert stats(fleet, f"?since_ms={START_MS + 60_000}") == []


def test_gaps_stand_for_themselves(fleet):
    keep(fleet, window("pi-1", 1, OLD))
    with fleet.context.database.write() as session:
        session.add(
            Gap(device="pi-1", slot="digits", session=1, first=2, last=4, declared_ms=START_MS)
        )
    assert [(row["digest"], row["gaps"]) for row in stats(fleet)] == [(OLD, 0), (None, 3)]
    assert [row["gaps"] for row in stats(fleet, "?slot=other")] == []


@pytest.mark.parametrize("query", ["since_ms=-1", "since_ms=x", "since_ms=1e30", "detail=maybe"])
def test_odd_questions_are_422(fleet, query):
    assert fleet.client("viewer").get(f"/api/v1/stats?{query}").status_code == 422


def test_metrics_are_per_bundle_and_never_per_device(fleet):
    from fleet_scene import push

    keep(fleet, window("pi-1", 1, push(fleet, "1.0.0")), window("pi-2", 1, OLD))
    text = fleet.client("viewer").get("/metrics").text
    assert 'edgepack_requests_kept{bundle="digits",version="1.0.0"} 40\n' in text
    assert 'edgepack_devices{presence="unknown"} 2\n' in text
    assert "pi-1" not in text
    for line in text.splitlines():
        assert line.startswith(("#", "edgepack_"))
