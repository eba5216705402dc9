"""Logging in to the page: with a one-time code, a password or a passkey; and out.

Every refusal of a door says the same whether the person exists or not, and takes as long. Who lets
somebody in writes it into the audit log; what was refused is logged without what was typed.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from edgepack_fleet.api.access import AsViewer, Public
from edgepack_fleet.api.answers import answer, returns
from edgepack_fleet.api.bodies import JsonBody
from edgepack_fleet.api.context import Context, Here
from edgepack_fleet.api.cookies import clear_cookie, cookie_name, set_cookie
from edgepack_fleet.api.limits import limited
from edgepack_fleet.api.problems import UnauthenticatedError
from edgepack_fleet.api.views import LoggedIn, LoginWays, PasskeyAsked
from edgepack_fleet.auditlog import append_audit
from edgepack_fleet.db.schema import UserRow
from edgepack_fleet.errors import InvalidRequestError
from edgepack_fleet.logins import SESSION_TTL_MS, close_login, open_login
from edgepack_fleet.passkeys import (
    LOGIN,
    Challenges,
    NewPasskey,
    RelyingParty,
    UsedPasskey,
    add_passkey,
    challenge_of,
    creation_options,
    relying_party,
    request_options,
    use_passkey,
)
from edgepack_fleet.passwords import Passwords
from edgepack_fleet.people import find_code, get_user, use_code
from edgepack_fleet.tokens import secret_hash

router = APIRouter(prefix="/api/v1", tags=["login"])
_log = logging.getLogger(__name__)

AtLogin = Annotated[str, Depends(limited("login"))]
AtCode = Annotated[str, Depends(limited("code"))]


class Code(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A one-time login code."""

    code: str


class ChosenPassword(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A one-time login code, and the password that its holder chooses."""

    code: str
    password: str


class ChosenPasskey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A one-time login code, and the passkey that its holder has made."""

    code: str
    passkey: NewPasskey


class NamePassword(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who somebody is, and their password."""

    name: str
    password: str


class Nothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An empty object."""


class LoginDesk:
    """What logging in needs and keeps in memory, made once per application."""

    def __init__(self) -> None:
        self.passwords = Passwords()
        self.challenges = Challenges()


def desk_of(request: Request) -> LoginDesk:
    """The desk of the application that a request came to."""
    desk = request.app.state.desk
    if not isinstance(desk, LoginDesk):
        raise TypeError("the application was not made by build_app")
    return desk


Desk = Annotated[LoginDesk, Depends(desk_of)]


@router.get("/login", openapi_extra=returns(LoginWays))
def ways(_: Public, here: Here) -> Response:
    """How one can log in: `passkeys` is the host name that has them, or null."""
    party = relying_party(here.public_url)
    return answer(LoginWays(passkeys=None if party is None else party.id))


@router.post("/login/code", openapi_extra=returns(PasskeyAsked))
def code(
    _: Public,
    address: AtCode,
    here: Here,
    desk: Desk,
    body: Annotated[Code, Depends(JsonBody(Code))],
) -> Response:
    """Say whose login code this is, and what a new passkey is asked for. It stays good."""
    now_ms = here.now_ms()
    with here.database.read() as session:
        user = find_code(session, body.code, now_ms=now_ms)
    if user is None:
        raise _bad_code(address)
    party = relying_party(here.public_url)
    options = None
    if party is not None:
        challenge = desk.challenges.new(secret_hash(body.code), now_ms)
        options = creation_options(party, user.name, challenge)
    return answer(PasskeyAsked(name=user.name, options=options))


@router.post("/login/code/password", openapi_extra=returns(LoggedIn))
def code_password(
    _: Public,
    address: AtCode,
    here: Here,
    desk: Desk,
    body: Annotated[ChosenPassword, Depends(JsonBody(ChosenPassword))],
) -> Response:
    """Choose a password with a login code, and be logged in. The code is used up."""
    now_ms = here.now_ms()
    with here.database.read() as session:
        if find_code(session, body.code, now_ms=now_ms) is None:
            raise _bad_code(address)
    kept = desk.passwords.hash(body.password)
    with here.database.write() as session:
        user = use_code(session, body.code, now_ms=now_ms)
        if user is None:
            raise _bad_code(address)
        user.password_hash = kept
        return _let_in(session, here, user, "user.password", address)


@router.post("/login/code/passkey", openapi_extra=returns(LoggedIn))
def code_passkey(
    _: Public,
    address: AtCode,
    here: Here,
    desk: Desk,
    body: Annotated[ChosenPasskey, Depends(JsonBody(ChosenPasskey))],
) -> Response:
    """Keep a passkey with a login code, and be logged in. The code is used up."""
    now_ms = here.now_ms()
    party = _party(here)
    fresh = desk.challenges.take(challenge_of(body.passkey), secret_hash(body.code), now_ms)
    with here.database.write() as session:
        user = use_code(session, body.code, now_ms=now_ms)
        if user is None:
            raise _bad_code(address)
        if not fresh:
            raise _stale_challenge()
        add_passkey(session, party, user.name, body.passkey, now_ms=now_ms)
        return _let_in(session, here, user, "user.passkey", address)


@router.post("/login/password", openapi_extra=returns(LoggedIn))
def password(
    _: Public,
    address: AtLogin,
    here: Here,
    desk: Desk,
    body: Annotated[NamePassword, Depends(JsonBody(NamePassword))],
) -> Response:
    """Log in with a password."""
    with here.database.read() as session:
        user = session.get(UserRow, body.name)
        kept = None if user is None else user.password_hash
    right = desk.passwords.is_right(kept, body.password)
    with here.database.write() as session:
        user = session.get(UserRow, body.name)
        # what was checked must still be what is kept: a reset may have come in between
        if not right or user is None or user.password_hash != kept:
            raise _failed(address, "this name and password do not fit together")
        return _let_in(session, here, user, "login.password", address)


@router.post("/login/passkey:begin", openapi_extra=returns(PasskeyAsked))
def passkey_begin(
    _: Public,
    __: AtLogin,
    here: Here,
    desk: Desk,
    body: Annotated[Nothing, Depends(JsonBody(Nothing))],
) -> Response:
    """What a passkey is asked for: the same for everybody, whoever they are."""
    del body
    party = _party(here)
    challenge = desk.challenges.new(LOGIN, here.now_ms())
    return answer(PasskeyAsked(name=None, options=request_options(party, challenge)))


@router.post("/login/passkey", openapi_extra=returns(LoggedIn))
def passkey(
    _: Public,
    address: AtLogin,
    here: Here,
    desk: Desk,
    body: Annotated[UsedPasskey, Depends(JsonBody(UsedPasskey))],
) -> Response:
    """Log in with a passkey."""
    now_ms = here.now_ms()
    party = _party(here)
    if not desk.challenges.take(challenge_of(body), LOGIN, now_ms):
        raise _stale_challenge()
    with here.database.write() as session:
        name = use_passkey(session, party, body, now_ms=now_ms)
        if name is None:
            raise _failed(address, "this passkey lets nobody in here")
        return _let_in(session, here, get_user(session, name), "login.passkey", address)


@router.post("/logout", status_code=204)
def logout(who: AsViewer, here: Here, request: Request) -> Response:
    """Log this browser out. Without its cookie nothing happens."""
    http = here.config.http
    secret = request.cookies.get(cookie_name(http), "")
    with here.database.write() as session:
        if close_login(session, secret):
            _note(session, here, who.name, "logout", who.address)
    response = Response(status_code=204)
    clear_cookie(response, http)
    return response


def _let_in(session: Session, here: Context, user: UserRow, how: str, address: str) -> Response:
    now_ms = here.now_ms()
    secret = open_login(session, user.name, now_ms=now_ms)
    _note(session, here, user.name, how, address)
    response = answer(LoggedIn(name=user.name, role=user.role, expires_ms=now_ms + SESSION_TTL_MS))
    set_cookie(response, here.config.http, secret)
    return response


def _note(session: Session, here: Context, name: str, action: str, address: str) -> None:
    detail: dict[str, Any] = {"address": address}
    append_audit(
        session, at_ms=here.now_ms(), actor=name, action=action, subject=name, detail=detail
    )


def _party(here: Context) -> RelyingParty:
    party = relying_party(here.public_url)
    if party is None:
        raise InvalidRequestError(
            f"browsers have no passkeys for {here.public_url}: that takes https and a host name "
            "(http.public_url); log in with a password",
            code="no-passkeys",
        )
    return party


def _bad_code(address: str) -> UnauthenticatedError:
    return _failed(
        address,
        "this login code is unknown, used or expired; ask an admin for another "
        "(edgepack user reset NAME)",
    )


def _stale_challenge() -> UnauthenticatedError:
    return UnauthenticatedError("this took too long, or was answered before; try again")


def _failed(address: str, words: str) -> UnauthenticatedError:
    # never the name: people type their password into the wrong field
    _log.warning("login refused from %s: %s", address, words, extra={"event": "login_refused"})
    return UnauthenticatedError(words, code="login-refused")
