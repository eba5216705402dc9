"""What devices reported, summed: counts that add exactly, and quantiles from merged histograms."""

from __future__ import annotations

from collections import defaultdict
from itertools import zip_longest
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from edgepack_contract.latency import LatencyColumns, LatencyHistogram
from edgepack_fleet.api.access import AsViewer
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.views import StatsRow
from edgepack_fleet.db.schema import Gap, WindowRow
from edgepack_fleet.errors import InvalidRequestError

router = APIRouter(prefix="/api/v1/stats", tags=["stats"])

MAX_DETAILED_WINDOWS = 20_000
_MS_2100 = 4_102_444_800_000

Key = tuple[str, str]


class _Outputs(msgspec.Struct, frozen=True):
    classes: list[int] = []


class _Body(msgspec.Struct, frozen=True):
    """The parts of a stored window that are not columns of its row."""

    latency: LatencyColumns = LatencyColumns()
    outputs: _Outputs = _Outputs()


class _Detail:
    """Histograms of one device and bundle, merged."""

    def __init__(self) -> None:
        self.latency = LatencyHistogram()
        self.classes: list[int] = []

    def add(self, body: _Body) -> None:
        self.latency.merge(body.latency)
        pairs = zip_longest(self.classes, body.outputs.classes, fillvalue=0)
        self.classes = [one + two for one, two in pairs]


@router.get("", openapi_extra=returns(StatsRow, many=True))
def index(
    _: AsViewer,
    here: Here,
    slot: Annotated[str | None, Query(max_length=63)] = None,
    since_ms: Annotated[int, Query(ge=0, le=_MS_2100)] = 0,
    *,
    detail: Annotated[bool, Query(description="Quantiles and class counts too.")] = False,
) -> Response:
    """Totals per device and bundle of the telemetry windows that began at or after `since_ms`."""
    where = [WindowRow.start_ms >= since_ms]
    if slot is not None:
        where.append(WindowRow.slot == slot)
    with here.database.read() as session:
        details = _details(session, where) if detail else {}
        rows = [_row(key, totals, details) for key, totals in _totals(session, where).items()]
        rows += _gaps(session, slot, since_ms)
    return answer({"items": rows, "next": None})


def _totals(session: Session, where: list[ColumnElement[bool]]) -> dict[Key, dict[str, int]]:
    columns = {
        "n": func.sum(WindowRow.n),
        "rows": func.sum(WindowRow.rows),
        "errors": func.sum(WindowRow.errors),
        "over_budget": func.sum(WindowRow.over_budget),
        "windows": func.sum(WindowRow.last - WindowRow.first + 1),
    }
    found = session.execute(
        select(WindowRow.device, WindowRow.digest, *columns.values())
        .where(*where)
        .group_by(WindowRow.device, WindowRow.digest)
        .order_by(WindowRow.device, WindowRow.digest)
    )
    return {
        (device, digest): dict(zip(columns, map(int, sums), strict=True))
        for device, digest, *sums in found
    }


def _details(session: Session, where: list[ColumnElement[bool]]) -> dict[Key, _Detail]:
    count = session.scalar(select(func.count()).select_from(WindowRow).where(*where)) or 0
    if count > MAX_DETAILED_WINDOWS:
        raise InvalidRequestError(
            f"these are {count} windows, and details are for at most {MAX_DETAILED_WINDOWS}: "
            "narrow them with since_ms or slot"
        )
    details: dict[Key, _Detail] = defaultdict(_Detail)
    found = session.execute(
        select(WindowRow.device, WindowRow.digest, WindowRow.body).where(*where)
    )
    for device, digest, body in found:
        details[device, digest].add(msgspec.json.decode(body, type=_Body))
    return details


def _row(key: Key, totals: dict[str, int], details: dict[Key, _Detail]) -> StatsRow:
    fields: dict[str, Any] = {"device": key[0], "digest": key[1], **totals}
    if key in details:
        fields["p50_ms"] = _ms(details[key].latency.quantile(0.50))
        fields["p95_ms"] = _ms(details[key].latency.quantile(0.95))
        fields["classes"] = details[key].classes
    return StatsRow(**fields)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds * 1e3:.6g}")


def _gaps(session: Session, slot: str | None, since_ms: int) -> list[StatsRow]:
    query = select(Gap.device, func.sum(Gap.last - Gap.first + 1)).where(
        Gap.declared_ms >= since_ms
    )
    if slot is not None:
        query = query.where(Gap.slot == slot)
    found = session.execute(query.group_by(Gap.device).order_by(Gap.device))
    return [StatsRow(device=device, digest=None, gaps=int(lost)) for device, lost in found]
