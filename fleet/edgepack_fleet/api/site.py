"""The web page: a few static files of the package, served without credentials.

The page holds no data; it asks the API for it with the credentials of whoever looks.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edgepack_contract.digest import sha256_digest
from edgepack_fleet.api.access import Public
from edgepack_fleet.api.ranges import is_unchanged

router = APIRouter(include_in_schema=False)

TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "login.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@router.get("/")
def index(_: Public, request: Request) -> Response:
    """The page."""
    return _file("index.html", request)


@router.get("/app.js")
def script(_: Public, request: Request) -> Response:
    """Its script."""
    return _file("app.js", request)


@router.get("/login.js")
def login_script(_: Public, request: Request) -> Response:
    """The part of its script that finds out who looks."""
    return _file("login.js", request)


@router.get("/style.css")
def style(_: Public, request: Request) -> Response:
    """Its style."""
    return _file("style.css", request)


@router.get("/icon.svg")
def icon(_: Public, request: Request) -> Response:
    """Its icon."""
    return _file("icon.svg", request)


@cache
def _read(name: str) -> tuple[bytes, str]:
    raw = (files("edgepack_fleet") / "web" / "static" / name).read_bytes()
    return raw, f'"{sha256_digest(raw)}"'


def _file(name: str, request: Request) -> Response:
    raw, etag = _read(name)
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if is_unchanged(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(raw, headers=headers, media_type=TYPES[name])
