"""Rollouts over REST: plan, start, look, steer."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_fleet.api.access import AsViewer
from edgepack_fleet.api.answers import Cursor, Limit, page, returns
from edgepack_fleet.api.context import Here
from edgepack_fleet.db.schema import RolloutRow
from edgepack_fleet.rollout.model import Rollout

router = APIRouter(prefix="/api/v1/rollouts", tags=["rollouts"])


@router.get("", openapi_extra=returns(Rollout, many=True))
def index(_: AsViewer, here: Here, after: Cursor = "", limit: Limit = 100) -> Response:
    """List rollouts, the newest first."""
    with here.database.read() as session:
        rows = recent_rollouts(session, limit=limit + 1)
    return page(rows, limit, lambda one: one.id)


def recent_rollouts(session: Session, *, limit: int) -> list[Rollout]:
    """The newest rollouts."""
    rows = session.scalars(
        select(RolloutRow.document).order_by(RolloutRow.created_ms.desc()).limit(limit)
    )
    return [msgspec.json.decode(row, type=Rollout) for row in rows]
