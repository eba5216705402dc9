"""Who calls, and the role that a route declares.

Every route's first parameter has one of the types ``Public``, ``AsDevice``, ``AsViewer``,
``AsOperator``, ``AsPublisher`` or ``AsAdmin``: the check runs before anything else of the request
is read. Credentials come in the ``Authorization`` header only, never in cookies or query strings.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from edgepack_contract.sealing import derived_secret
from edgepack_fleet.api.context import Context, context_of
from edgepack_fleet.api.problems import ForbiddenError, UnauthenticatedError
from edgepack_fleet.db.schema import Device
from edgepack_fleet.tokens import PREFIX, Role, find_holder, touch_token

PULL_PURPOSE = "pull"
"""What the device's MAC key is derived for when it authenticates to the bundle store."""

_NO_KEY = b"\0" * 32


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request; ``name`` is what the audit log says."""

    name: str
    role: Role
    token_hash: str = ""


ANONYMOUS = Caller("anonymous", Role.PUBLIC)


class Requires:
    """The dependency that makes a route ask for a role.

    Args:
        role: The least role that may use the route.
    """

    def __init__(self, role: Role) -> None:
        self.role = role

    def __call__(self, request: Request) -> Caller:
        """Authenticate the request and check its role.

        Raises:
            UnauthenticatedError: No valid credentials.
            ForbiddenError: Valid credentials of a lesser role.
        """
        if self.role is Role.PUBLIC:
            return ANONYMOUS
        caller = authenticate(request.headers.get("authorization"), context_of(request))
        if caller.role.rank < self.role.rank:
            raise ForbiddenError(
                f"{caller.name} has the role {caller.role}, this needs {self.role}; ask an admin "
                f"for a token of that role (edgepack fleet token --role {self.role})"
            )
        return caller


Public = Annotated[Caller, Depends(Requires(Role.PUBLIC))]
AsDevice = Annotated[Caller, Depends(Requires(Role.DEVICE))]
AsViewer = Annotated[Caller, Depends(Requires(Role.VIEWER))]
AsOperator = Annotated[Caller, Depends(Requires(Role.OPERATOR))]
AsPublisher = Annotated[Caller, Depends(Requires(Role.PUBLISHER))]
AsAdmin = Annotated[Caller, Depends(Requires(Role.ADMIN))]


def authenticate(header: str | None, context: Context) -> Caller:
    """Who an ``Authorization`` header stands for.

    ``Bearer TOKEN``; ``Basic token:TOKEN`` for clients that only know Basic, such as skopeo; or
    ``Basic DEVICE:SECRET``, where the secret is derived from the device's MAC key.

    Raises:
        UnauthenticatedError: Missing, malformed, unknown, expired or revoked.
    """
    if header is None:
        raise UnauthenticatedError(
            "this needs credentials: send 'Authorization: Bearer TOKEN' with a token of "
            "'edgepack fleet token'"
        )
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return _token(rest.strip(), context)
    user, password = _basic(rest) if scheme.lower() == "basic" else ("", "")
    return (
        _token(password, context)
        if password.startswith(PREFIX)
        else _device(user, password, context)
    )


def _basic(encoded: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return "", ""
    user, _, password = text.partition(":")
    return user, password


def _token(secret: str, context: Context) -> Caller:
    now_ms = context.now_ms()
    with context.database.read() as session:
        holder = find_holder(session, secret, now_ms=now_ms)
    if holder is None:
        raise UnauthenticatedError(
            "this token is unknown, revoked or expired; make one with 'edgepack fleet token'"
        )
    if holder.stale:
        with context.database.write() as session:
            touch_token(session, holder.hash, now_ms=now_ms)
    return Caller(holder.name, holder.role, holder.hash)


def _device(user: str, password: str, context: Context) -> Caller:
    with context.database.read() as session:
        device = session.get(Device, user)
        accepted = device is not None and device.status == "accepted"
        key = device.mac_key if device is not None and accepted else _NO_KEY
    # compared even for a device that does not exist: the answer takes as long and says as little
    right = hmac.compare_digest(
        derived_secret(key, PULL_PURPOSE).encode(), password.encode(errors="replace")
    )
    if not (accepted and right):
        raise UnauthenticatedError("these credentials are not those of an accepted device")
    return Caller(f"device:{user}", Role.DEVICE)
