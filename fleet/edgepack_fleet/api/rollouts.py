"""Rollouts over REST: plan, start, look, steer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import Response

from edgepack_fleet import rollouts
from edgepack_fleet.api.access import AsOperator, AsViewer, check_scope
from edgepack_fleet.api.answers import Cursor, Limit, answer, page, returns
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.idempotency import MAX_KEY_LENGTH, Once
from edgepack_fleet.api.records import record
from edgepack_fleet.api.views import PlanView, RolloutView, Why, rollout_view
from edgepack_fleet.rollout.explain import next_action, why_rollout
from edgepack_fleet.rollout.model import RolloutEvent, RolloutOptions
from edgepack_fleet.rollout.options import check_options

router = APIRouter(prefix="/api/v1", tags=["rollouts"])

Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=MAX_KEY_LENGTH)]


class NewRollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which bundle to roll out to which group; every option has a safe default."""

    bundle: str
    version: str
    group: str
    options: RolloutOptions = msgspec.field(default_factory=RolloutOptions)


class Steering(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Words for the record, and what the caller has seen.

    ``revert`` is for `abort`: devices go back to what they ran before. With ``sequence`` the action
    is refused when the rollout has gone on since that event.
    """

    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    revert: bool = False
    sequence: int | None = None


NewBody = Annotated[NewRollout, Depends(JsonBody(NewRollout))]
SteeringBody = Annotated[Steering, Depends(JsonBody(Steering))]


@router.post("/rollouts:plan", openapi_extra=returns(PlanView))
def plan(who: AsViewer, here: Here, body: NewBody) -> Response:
    """Say what a rollout would be: stages, gates, and which devices cannot run the bundle."""
    now_ms = here.now_ms()
    with here.database.read() as session:
        planned = rollouts.plan_rollout(
            session, here.writer, _request(body, who.name), now_ms=now_ms
        )
    view = PlanView(
        rollout=planned.rollout,
        incompatible=planned.incompatible,
        unheard=planned.unheard,
        warnings=planned.warnings,
    )
    return answer(view)


@router.post("/rollouts", status_code=201, openapi_extra=returns(RolloutView, 201))
def start(who: AsOperator, here: Here, body: NewBody, key: Key = None) -> Response:
    """Start a rollout. With an `Idempotency-Key` a repetition starts no second one."""
    check_scope(who, bundle=body.bundle, group=body.group)
    now_ms = here.now_ms()
    once = Once(who.idempotency_key, key, body, now_ms)
    with here.database.write() as session:

        def create() -> RolloutView:
            planned = rollouts.start_rollout(
                session, here.writer, _request(body, who.name), now_ms=now_ms
            )
            record(
                session,
                who,
                at_ms=now_ms,
                action="rollout.start",
                subject=planned.rollout.id,
                detail={"bundle": f"{body.bundle}:{body.version}", "group": body.group},
            )
            return rollout_view(planned.rollout, now_ms)

        response = once.do(session, HTTPStatus.CREATED, create)
    here.wake()
    return response


@router.get("/rollouts", openapi_extra=returns(RolloutView, many=True))
def index(_: AsViewer, here: Here, after: Cursor = "", limit: Limit = 100) -> Response:
    """List rollouts, the newest first."""
    now_ms = here.now_ms()
    with here.database.read() as session:
        found = rollouts.list_rollouts(session, after=after, limit=limit + 1)
    return page([rollout_view(one, now_ms) for one in found], limit, lambda one: one.id)


@router.get("/rollouts/{rollout}", openapi_extra=returns(RolloutView))
def show(_: AsViewer, here: Here, rollout: str) -> Response:
    """One rollout: stages, gates with their numbers, every device, and what comes next."""
    with here.database.read() as session:
        found = rollouts.load_rollout(session, rollout)
    return answer(rollout_view(found, here.now_ms()))


@router.get("/rollouts/{rollout}/events", openapi_extra=returns(RolloutEvent, many=True))
def events(
    _: AsViewer,
    here: Here,
    rollout: str,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Limit = 1000,
) -> Response:
    """The decisions of a rollout in order, behind the event number `after`."""
    with here.database.read() as session:
        found = rollouts.rollout_events(session, rollout, after=after, limit=limit + 1)
    return page(found, limit, lambda event: str(event.sequence))


@router.get("/rollouts/{rollout}/why", openapi_extra=returns(Why))
def why(_: AsViewer, here: Here, rollout: str) -> Response:
    """Where a rollout stands and why, in words and numbers."""
    with here.database.read() as session:
        found = rollouts.load_rollout(session, rollout)
    return answer(Why(why=f"{why_rollout(found)} Next: {next_action(found, here.now_ms())}."))


@router.post("/rollouts/{rollout}/{verb}", openapi_extra=returns(RolloutView))
def steer(
    who: AsOperator, here: Here, rollout: str, verb: rollouts.Verb, body: SteeringBody
) -> Response:
    """Pause, resume, promote, abort or roll back."""
    now_ms = here.now_ms()
    action = rollouts.Action(
        verb=verb,
        actor=who.name,
        reason=body.reason,
        revert=body.revert,
        expected_sequence=body.sequence,
    )
    with here.database.write() as session:
        before = rollouts.load_rollout(session, rollout)
        check_scope(who, bundle=before.bundle, group=before.group)
        after = rollouts.act_on_rollout(session, here.writer, rollout, action, now_ms=now_ms)
        detail: dict[str, Any] = msgspec.to_builtins(body)
        record(
            session,
            who,
            at_ms=now_ms,
            action=f"rollout.{verb}",
            subject=rollout,
            detail=detail,
        )
    here.wake()
    return answer(rollout_view(after, now_ms))


def _request(body: NewRollout, actor: str) -> rollouts.Request:
    return rollouts.Request(
        bundle=body.bundle,
        version=body.version,
        group=body.group,
        options=check_options(body.options),
        actor=actor,
    )
