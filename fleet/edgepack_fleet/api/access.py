"""Who calls, and the role that a route declares.

Every route's first parameter has one of the types ``Public``, ``AsDevice``, ``AsViewer``,
``AsOperator``, ``AsPublisher`` or ``AsAdmin``: the check runs before anything else of the request
is read. Credentials come in the ``Authorization`` header, or from the page in the cookie of a
person who has logged in; never in query strings. The header wins over the cookie.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from edgepack_contract.sealing import derived_secret
from edgepack_fleet.api.clients import rate_key
from edgepack_fleet.api.context import Context, context_of
from edgepack_fleet.api.cookies import cookie_name
from edgepack_fleet.api.limits import limiter_of
from edgepack_fleet.api.origin import not_the_own_page
from edgepack_fleet.api.problems import ForbiddenError, NoCredentialsError, UnauthenticatedError
from edgepack_fleet.db.schema import Device
from edgepack_fleet.devices import ACCEPTED
from edgepack_fleet.grants import EVERYTHING, Role, Scope, allows, covers
from edgepack_fleet.logins import find_login, touch_login
from edgepack_fleet.tokens import PREFIX, find_holder, is_whole, secret_hash, touch_token

PULL_PURPOSE = "pull"
"""What the device's MAC key is derived for when it authenticates to the bundle store."""

_NO_KEY = b"\0" * 32


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request.

    Attributes:
        name: What the audit log says.
        role: What they may do.
        key: What their requests are counted under.
        scope: The bundles and groups that they are limited to.
        address: Where the request came from.
        by_cookie: Whether a browser added the credentials by itself.
    """

    name: str
    role: Role
    key: str
    scope: Scope = EVERYTHING
    address: str = ""
    by_cookie: bool = False

    @property
    def idempotency_key(self) -> str:
        """Whose repeated requests these are: 64 characters, as a token's hash has."""
        return secret_hash(self.key)


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
            ForbiddenError: Valid credentials of a lesser role, or those of a browser on a request
                that is not shown to be the own page's.
            TooManyRequestsError: Too many of these requests, or too many that are not valid.
        """
        limiter, context = limiter_of(request), context_of(request)
        now_ms = context.now_ms()
        address = limiter.address(request)
        if self.role is Role.PUBLIC:
            limiter.request(f"address {rate_key(address)}", now_ms)
            return Caller("anonymous", Role.PUBLIC, "", address=address)
        try:
            caller = authenticate(request)
        except NoCredentialsError:
            # clients of registries always ask without first
            limiter.request(f"address {rate_key(address)}", now_ms)
            raise
        except UnauthenticatedError:
            # whoever has valid credentials is let in however often a neighbour fails
            limiter.failed(address, now_ms)
            raise
        limiter.request(caller.key, now_ms)
        self._check(caller, request)
        return caller

    def _check(self, caller: Caller, request: Request) -> None:
        if caller.by_cookie:
            origin = context_of(request).origins
            why = not_the_own_page(request.method, request.headers, origin)
            if why is not None:
                raise ForbiddenError(
                    f"with a browser's cookie only the fleet's own page may do this: {why}",
                    code="foreign-origin",
                )
        if caller.role.rank < self.role.rank:
            raise ForbiddenError(
                f"{caller.name} has the role {caller.role}, this needs {self.role}; ask an admin "
                f"for a token of that role (edgepack token create NAME --role {self.role})"
            )


Public = Annotated[Caller, Depends(Requires(Role.PUBLIC))]
AsDevice = Annotated[Caller, Depends(Requires(Role.DEVICE))]
AsViewer = Annotated[Caller, Depends(Requires(Role.VIEWER))]
AsOperator = Annotated[Caller, Depends(Requires(Role.OPERATOR))]
AsPublisher = Annotated[Caller, Depends(Requires(Role.PUBLISHER))]
AsAdmin = Annotated[Caller, Depends(Requires(Role.ADMIN))]


def check_scope(caller: Caller, *, bundle: str | None = None, group: str | None = None) -> None:
    """Refuse what the caller is not limited to.

    Raises:
        ForbiddenError: With code ``out-of-scope``, and what the caller is limited to.
    """
    if allows(caller.scope, bundle=bundle, group=group):
        return
    asked = [f"{what} {name}" for what, name in (("bundle", bundle), ("group", group)) if name]
    raise ForbiddenError(
        f"{caller.name} is limited to {caller.scope}, and this is for {', '.join(asked)}; ask an "
        "admin for a token that covers it",
        code="out-of-scope",
    )


def check_every_group(caller: Caller) -> None:
    """Refuse a caller who is limited to some groups.

    Raises:
        ForbiddenError: With code ``out-of-scope``.
    """
    if not covers(caller.scope, Scope(bundles=caller.scope.bundles)):
        raise ForbiddenError(
            f"{caller.name} is limited to {caller.scope}, and this takes somebody who is "
            "limited to no groups: it decides which devices there are, or what is in a group",
            code="out-of-scope",
        )


def check_grant(caller: Caller, role: Role, scope: Scope) -> None:
    """Refuse to let a caller give somebody more than the caller has.

    Raises:
        ForbiddenError: With code ``out-of-scope``, and what the caller has.
    """
    if role.rank <= caller.role.rank and covers(caller.scope, scope):
        return
    raise ForbiddenError(
        f"{caller.name} has the role {caller.role} for {caller.scope}, and cannot give the role "
        f"{role} for {scope}; name patterns that are within the first",
        code="out-of-scope",
    )


def authenticate(request: Request) -> Caller:
    """Who the credentials of a request stand for.

    ``Bearer TOKEN``; ``Basic token:TOKEN`` for clients that only know Basic, such as skopeo;
    ``Basic DEVICE:SECRET``, where the secret is derived from the device's MAC key; or, without an
    ``Authorization`` header, the cookie of a browser that has logged in.

    Raises:
        NoCredentialsError: There are none.
        UnauthenticatedError: Malformed, unknown, expired or revoked.
    """
    context, address = context_of(request), limiter_of(request).address(request)
    header = request.headers.get("authorization")
    if header is None:
        cookie = request.cookies.get(cookie_name(context.config.http))
        if cookie is not None:
            return _person(cookie, context, address)
        raise NoCredentialsError(
            "this needs credentials: send 'Authorization: Bearer TOKEN' with a token of "
            "'edgepack token create', or log in to the page"
        )
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return _token(rest.strip(), context, address)
    user, password = _basic(rest) if scheme.lower() == "basic" else ("", "")
    return (
        _token(password, context, address)
        if password.startswith(PREFIX)
        else _device(user, password, context, address)
    )


def _basic(encoded: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return "", ""
    user, _, password = text.partition(":")
    return user, password


def _token(secret: str, context: Context, address: str) -> Caller:
    if not is_whole(secret, PREFIX):
        raise UnauthenticatedError(
            f"this is not a whole token: a token is {PREFIX} and 49 characters, and its checksum "
            "shows that something was cut off or mistyped; copy it again",
            code="mistyped-token",
        )
    now_ms = context.now_ms()
    with context.database.read() as session:
        holder = find_holder(session, secret, now_ms=now_ms)
    if holder is None:
        raise UnauthenticatedError(
            "this token is unknown, revoked or expired; make one with 'edgepack token create'"
        )
    if holder.stale:
        with context.database.write() as session:
            touch_token(session, holder.hash, now_ms=now_ms)
    return Caller(holder.name, holder.role, holder.hash, holder.scope, address)


def _person(secret: str, context: Context, address: str) -> Caller:
    now_ms = context.now_ms()
    with context.database.read() as session:
        holder = find_login(session, secret, now_ms=now_ms)
    if holder is None:
        raise UnauthenticatedError("you are not logged in any more: log in again")
    if holder.stale:
        with context.database.write() as session:
            touch_login(session, holder.hash, now_ms=now_ms)
    key = f"person {holder.name}"
    return Caller(holder.name, holder.role, key, holder.scope, address, by_cookie=True)


def _device(user: str, password: str, context: Context, address: str) -> Caller:
    with context.database.read() as session:
        device = session.get(Device, user)
        accepted = device is not None and device.status == ACCEPTED
        key = device.mac_key if device is not None and accepted else _NO_KEY
    # compared even for a device that does not exist: the answer takes as long and says as little
    right = hmac.compare_digest(
        derived_secret(key, PULL_PURPOSE).encode(), password.encode(errors="replace")
    )
    if not (accepted and right):
        raise UnauthenticatedError("these credentials are not those of an accepted device")
    name = f"device:{user}"
    return Caller(name, Role.DEVICE, name, address=address)
