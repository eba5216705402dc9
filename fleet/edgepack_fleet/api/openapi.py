"""What the API says of itself: the OpenAPI document, and the role of every route."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi.routing import APIRoute

from edgepack_contract.enrolment import EnrolAnswer, RenewalAnswer
from edgepack_fleet import devices, enrolment
from edgepack_fleet.api.access import Public, Requires
from edgepack_fleet.api.answers import COMPONENTS, answer
from edgepack_fleet.api.audit import AuditEntry, AuditReport
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.cookies import SECURE_NAME
from edgepack_fleet.api.keyring import KeyringStatus, KeyringView
from edgepack_fleet.api.problems import PROBLEM_TYPE
from edgepack_fleet.api.status import Status
from edgepack_fleet.api.views import (
    BundleDetail,
    BundleView,
    CodeView,
    GroupView,
    LoggedIn,
    LoginWays,
    Me,
    PasskeyAsked,
    PersonView,
    PlanView,
    RolloutView,
    StatsRow,
    TokenView,
    Why,
)
from edgepack_fleet.bundles import Pushed
from edgepack_fleet.grants import Role
from edgepack_fleet.join_tokens import JoinToken
from edgepack_fleet.rollout.model import RolloutEvent

router = APIRouter()

ANSWERS: tuple[type[Any], ...] = (
    AuditEntry,
    AuditReport,
    BundleDetail,
    BundleView,
    CodeView,
    GroupView,
    KeyringStatus,
    KeyringView,
    LoggedIn,
    LoginWays,
    Me,
    PasskeyAsked,
    PersonView,
    PlanView,
    Pushed,
    RolloutView,
    RolloutEvent,
    StatsRow,
    Status,
    TokenView,
    Why,
    EnrolAnswer,
    JoinToken,
    RenewalAnswer,
    devices.DeviceView,
    enrolment.PendingView,
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


NEVER_SENT = ("HTTPValidationError", "ValidationError")
"""The framework's own form of a refusal, which it documents for every route."""


@router.get("/api/v1/openapi.json", include_in_schema=False)
def openapi(_: Public, request: Request) -> Response:
    """The OpenAPI document."""
    return answer(build_openapi(request.app))


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
    components["schemas"] = components.get("schemas", {}) | schemas | {"Problem": PROBLEM_SCHEMA}
    for name in NEVER_SENT:
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "login": {"type": "apiKey", "in": "cookie", "name": SECURE_NAME},
    }
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
    operation["security"] = [] if role is Role.PUBLIC else [{"token": []}, {"login": []}]
    operation["responses"].pop("422", None)
    problem = {"schema": {"$ref": COMPONENTS.format(name="Problem")}}
    refused = {"description": "Refused; why is in `detail`", "content": {PROBLEM_TYPE: problem}}
    operation["responses"]["default"] = refused
    if body is not None:
        schema = {"$ref": COMPONENTS.format(name=body.__name__)}
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
