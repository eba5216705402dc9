"""What the API says of itself: the OpenAPI document, health and metrics."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi.routing import APIRoute
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgepack_fleet import devices
from edgepack_fleet.api.access import AsViewer, Public, Requires
from edgepack_fleet.api.answers import COMPONENTS, answer, returns
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.context import Context, Here
from edgepack_fleet.api.devices import lease_ms
from edgepack_fleet.api.problems import PROBLEM_TYPE
from edgepack_fleet.api.views import (
    BundleDetail,
    BundleView,
    GroupView,
    Me,
    PlanView,
    RolloutView,
    StatsRow,
    TokenView,
    Why,
)
from edgepack_fleet.bundles import Pushed
from edgepack_fleet.db.schema import Bundle, Device, RolloutRow, WindowRow
from edgepack_fleet.rollout.model import RolloutEvent
from edgepack_fleet.tokens import Role

router = APIRouter()

ANSWERS: tuple[type[Any], ...] = (
    BundleDetail,
    BundleView,
    GroupView,
    Me,
    PlanView,
    Pushed,
    RolloutView,
    RolloutEvent,
    StatsRow,
    TokenView,
    Why,
    devices.DeviceView,
)
"""Every type that a route answers with."""

PROBLEM_SCHEMA = {
    "title": "Problem",
    "description": "RFC 9457 problem details; `code` is stable, `detail` is for people.",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
    },
}

MESSAGES = "messages_"
"""How the names of the service's counters of messages begin."""

PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/api/v1/openapi.json", include_in_schema=False)
def openapi(_: Public, request: Request) -> Response:
    """The OpenAPI document."""
    return answer(build_openapi(request.app))


@router.get("/healthz", include_in_schema=False)
def healthz(_: Public, here: Here) -> Response:
    """Whether the service answers and can read its database."""
    with here.database.read() as session:
        session.execute(select(1))
    return answer({"status": "ok"})


@router.get("/api/v1/me", tags=["service"], openapi_extra=returns(Me))
def me(who: AsViewer) -> Response:
    """Whose token this is, and what it may do."""
    return answer(Me(name=who.name, role=who.role.value))


@router.get("/metrics", include_in_schema=False)
def metrics(_: AsViewer, here: Here) -> Response:
    """Metrics for Prometheus, summed over devices: no series per device."""
    with here.database.read() as session:
        text = "".join(_families(session, here))
    return Response(text, media_type=PROMETHEUS_TYPE)


def role_of(route: APIRoute) -> Role | None:
    """The role that a route declares with its first parameter; None when it declares none."""
    first = route.dependant.dependencies[:1]
    call = first[0].call if first else None
    return call.role if isinstance(call, Requires) else None


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1 of the REST routes, with bodies, answers and roles."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    routes = [one for one in app.routes if isinstance(one, APIRoute) and one.include_in_schema]
    bodies = [shape for route in routes if (shape := _body_of(route.dependant))]
    _, schemas = msgspec.json.schema_components([*ANSWERS, *bodies], ref_template=COMPONENTS)
    components = document.setdefault("components", {})
    components["schemas"] = schemas | {"Problem": PROBLEM_SCHEMA}
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for route in routes:
        for method in route.methods or ():
            operation = document["paths"][route.path][method.lower()]
            _complete(operation, route)
    return document


def _body_of(dependant: Dependant) -> type[msgspec.Struct] | None:
    calls = [one.call for one in dependant.dependencies]
    return next((call.shape for call in calls if isinstance(call, JsonBody)), None)


def _complete(operation: dict[str, Any], route: APIRoute) -> None:
    role, body = role_of(route), _body_of(route.dependant)
    operation["x-edgepack-role"] = role
    operation["security"] = [] if role is Role.PUBLIC else [{"token": []}]
    operation["responses"].pop("422", None)  # the framework's own form, which is never sent
    problem = {"schema": {"$ref": COMPONENTS.format(name="Problem")}}
    refused = {"description": "Refused; why is in `detail`", "content": {PROBLEM_TYPE: problem}}
    operation["responses"]["default"] = refused
    if body is not None:
        schema = {"$ref": COMPONENTS.format(name=body.__name__)}
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}


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
        *(
            _family(name, f"{name.replace('_', ' ').capitalize()}: 1 or 0.", [({}, n)])
            for name, n in rest
        ),
    ]


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
