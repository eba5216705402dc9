"""Metrics for Prometheus: sums over devices by bundle and version, never a series per device."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgepack_fleet import devices
from edgepack_fleet.api.access import AsViewer
from edgepack_fleet.api.context import Context, Here
from edgepack_fleet.api.devices import lease_ms
from edgepack_fleet.db.schema import Bundle, Device, RolloutRow, WindowRow

router = APIRouter(include_in_schema=False)

PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


MESSAGES = "messages_"
"""How the names of the service's counters of messages begin."""


@router.get("/metrics", include_in_schema=False)
def metrics(_: AsViewer, here: Here) -> Response:
    """Metrics for Prometheus, summed over devices: no series per device."""
    with here.database.read() as session:
        text = "".join(_families(session, here))
    return Response(text, media_type=PROMETHEUS_TYPE)


def _families(session: Session, here: Context) -> list[str]:
    rollouts = session.execute(
        select(RolloutRow.state, func.count()).group_by(RolloutRow.state)
    ).all()
    bundles = session.execute(select(Bundle.name, func.count()).group_by(Bundle.name)).all()
    totals = session.execute(
        select(
            Bundle.name,
            Bundle.version,
            func.sum(WindowRow.n),
            func.sum(WindowRow.errors),
            func.sum(WindowRow.over_budget),
        )
        .join(WindowRow, WindowRow.digest == Bundle.digest)
        .group_by(Bundle.name, Bundle.version)
    ).all()
    by_model = [({"bundle": name, "version": version}, rest) for name, version, *rest in totals]
    return [
        _family("devices", "Devices by presence.", _presences(session, here)),
        _family("rollouts", "Rollouts by state.", [({"state": s}, n) for s, n in rollouts]),
        _family("bundles", "Bundles by name.", [({"bundle": name}, n) for name, n in bundles]),
        _family("requests_kept", "Requests in the telemetry kept.", _column(by_model, 0)),
        _family("errors_kept", "Failed requests in the telemetry kept.", _column(by_model, 1)),
        _family("over_budget_kept", "Requests over the latency budget.", _column(by_model, 2)),
        *_counters(here.counters()),
    ]


def _counters(counters: dict[str, int]) -> list[str]:
    outcomes = [
        ({"outcome": name.removeprefix(MESSAGES)}, n)
        for name, n in sorted(counters.items())
        if name.startswith(MESSAGES)
    ]
    rest = [(name, n) for name, n in sorted(counters.items()) if not name.startswith(MESSAGES)]
    words = "Messages from devices by what became of them."
    return [
        _family("messages_total", words, outcomes, kind="counter"),
        *(_of_service(name, n) for name, n in rest),
    ]


def _of_service(name: str, n: int) -> str:
    words = name.removesuffix("_total").replace("_", " ").capitalize()
    if name.endswith("_total"):
        return _family(name, f"{words} since the start.", [({}, n)], kind="counter")
    return _family(name, f"{words}: 1 or 0.", [({}, n)])


def _presences(session: Session, here: Context) -> list[tuple[dict[str, str], int]]:
    now_ms, lease = here.now_ms(), lease_ms(here)
    rows = session.scalars(select(Device).where(Device.status == devices.ACCEPTED))
    counts = Counter(devices.presence(row, now_ms=now_ms, lease_ms=lease) for row in rows)
    return [({"presence": name}, n) for name, n in sorted(counts.items())]


def _column(
    rows: list[tuple[dict[str, str], list[int]]], index: int
) -> list[tuple[dict[str, str], int]]:
    return [(labels, values[index]) for labels, values in rows]


def _family(
    name: str, words: str, samples: list[tuple[dict[str, str], int]], *, kind: str = "gauge"
) -> str:
    full = f"edgepack_{name}"
    lines = [f"# HELP {full} {words}", f"# TYPE {full} {kind}"]
    for labels, value in samples:
        # label values are ids, versions and names of states: nothing in them needs escaping
        inner = ",".join(f'{key}="{text}"' for key, text in labels.items())
        lines.append(f"{full}{{{inner}}} {value}" if inner else f"{full} {value}")
    return "\n".join(lines) + "\n"
