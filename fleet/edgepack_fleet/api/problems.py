"""Every refusal of the API in one place: which error becomes which status, and how it is written.

Refusals are ``application/problem+json`` (RFC 9457) with the stable ``code`` of the error; below
``/v2/`` they have the form of the OCI distribution specification, which its clients print.
"""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from edgepack_contract.canonical import canonical_json
from edgepack_contract.errors import (
    BundleError,
    ConfigError,
    DocumentError,
    EdgepackError,
    UntrustedBundleError,
)
from edgepack_fleet.api.ranges import UnsatisfiableRangeError
from edgepack_fleet.errors import (
    ConflictError,
    IncompatibleError,
    InvalidRequestError,
    NotAdmittedError,
    NotFoundError,
    OperationError,
    RequestError,
)

PROBLEM_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)


class UnauthenticatedError(EdgepackError):
    """No credentials, or none that are valid."""

    default_code = "unauthenticated"


class NoCredentialsError(UnauthenticatedError):
    """No credentials at all, which is how clients ask what kind is wanted."""


class ForbiddenError(EdgepackError):
    """The credentials are valid, but not for this."""

    default_code = "forbidden"


class TooLargeError(EdgepackError):
    """The body is larger than what is accepted here."""

    default_code = "too-large"


class WrongTypeError(EdgepackError):
    """The body has a content type that is not accepted here."""

    default_code = "wrong-content-type"


class TooManyRequestsError(EdgepackError):
    """More requests than are answered in this time; ``retry_after`` is in seconds."""

    default_code = "too-many-requests"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


STATUS: dict[type[EdgepackError], HTTPStatus] = {
    UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    ForbiddenError: HTTPStatus.FORBIDDEN,
    TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    TooManyRequestsError: HTTPStatus.TOO_MANY_REQUESTS,
    WrongTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    UnsatisfiableRangeError: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    NotAdmittedError: HTTPStatus.FORBIDDEN,
    InvalidRequestError: HTTPStatus.UNPROCESSABLE_ENTITY,
    IncompatibleError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RequestError: HTTPStatus.BAD_REQUEST,
    OperationError: HTTPStatus.SERVICE_UNAVAILABLE,
    UntrustedBundleError: HTTPStatus.FORBIDDEN,
    BundleError: HTTPStatus.UNPROCESSABLE_ENTITY,
    DocumentError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
}
"""The nearest class on the error's own line of descent decides; an error that is not here is ours,
and a 500."""

_OCI_CODES = {
    HTTPStatus.UNAUTHORIZED: "UNAUTHORIZED",
    HTTPStatus.FORBIDDEN: "DENIED",
    HTTPStatus.NOT_FOUND: "NAME_UNKNOWN",
    HTTPStatus.METHOD_NOT_ALLOWED: "UNSUPPORTED",
    HTTPStatus.TOO_MANY_REQUESTS: "TOOMANYREQUESTS",
}


def status_of(error: EdgepackError) -> HTTPStatus:
    """The HTTP status of a domain error."""
    known = (STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return next(known, HTTPStatus.INTERNAL_SERVER_ERROR)


def refusal(path: str, status: HTTPStatus, code: str, detail: str) -> Response:
    """The response that refuses a request for ``path``."""
    headers = {"Cache-Control": "no-store"}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = _challenge(path)
    if is_oci(path):
        oci = {"code": _OCI_CODES.get(status, "UNSUPPORTED"), "message": detail, "detail": code}
        body, media_type = canonical_json({"errors": [oci]}), "application/json"
    else:
        problem = {"type": "about:blank", "title": status.phrase, "status": int(status)}
        body = canonical_json(problem | {"code": code, "detail": detail})
        media_type = PROBLEM_TYPE
    return Response(body, status_code=status, headers=headers, media_type=media_type)


def is_oci(path: str) -> bool:
    """Whether a path belongs to the OCI distribution API."""
    return path == "/v2" or path.startswith("/v2/")


def install_problems(app: FastAPI) -> None:
    """Make ``app`` answer every error as a refusal."""
    app.add_exception_handler(EdgepackError, _domain)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(OSError, _disk)


def _challenge(path: str) -> str:
    return f'{"Basic" if is_oci(path) else "Bearer"} realm="edgepack", charset="UTF-8"'


def _domain(request: Request, error: Exception) -> Response:
    if not isinstance(error, EdgepackError):
        raise error
    status = status_of(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("no status for %s", type(error).__name__, exc_info=error)
    if isinstance(error, DocumentError) and error.code == "too-large":
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    response = refusal(request.url.path, status, error.code, str(error))
    if isinstance(error, UnsatisfiableRangeError):
        response.headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, TooManyRequestsError):
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    code = status.phrase.lower().replace(" ", "-")
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    response = refusal(request.url.path, status, code, detail)
    response.headers.update(error.headers or {})
    return response


def _parameters(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    detail = "; ".join(faults)[:1000]
    path = request.url.path
    return refusal(path, HTTPStatus.UNPROCESSABLE_ENTITY, "bad-parameter", detail)


def _gone(request: Request, error: Exception) -> Response:
    _log.info("%s %s: the client went away (%r)", request.method, request.url.path, error)
    # nobody reads it
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def _disk(request: Request, error: Exception) -> Response:
    path = request.url.path
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _log.error("the disk of the fleet service is full: %s", error)
        return refusal(
            path, HTTPStatus.INSUFFICIENT_STORAGE, "disk-full", "the fleet service's disk is full"
        )
    return bug(request, error)


def bug(request: Request, error: Exception) -> Response:
    """The answer when the service itself failed: the log says how, the answer does not."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return refusal(
        request.url.path,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal",
        "the fleet service failed; its log says why",
    )
