"""Bundles over REST: push, list, show."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from edgepack_contract.digest import CHUNK_BYTES
from edgepack_contract.limits import LIMITS
from edgepack_fleet.api.access import AsPublisher, AsViewer, check_scope
from edgepack_fleet.api.answers import Cursor, Limit, answer, page, returns
from edgepack_fleet.api.bodies import refuse_declared, too_large
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.records import record
from edgepack_fleet.api.views import BundleDetail, BundleView, bundle_detail, bundle_view
from edgepack_fleet.bundles import OCTETS, Pushed, Upload, find_bundle, list_bundles

router = APIRouter(prefix="/api/v1/bundles", tags=["bundles"])


@router.put(
    "",
    status_code=201,
    openapi_extra=returns(Pushed, 201)
    | {"requestBody": {"required": True, "content": {OCTETS: {"schema": {"format": "binary"}}}}},
)
async def push(who: AsPublisher, here: Here, request: Request) -> Response:
    """Push a bundle: the bytes of a signed ``.edgepack`` file are the body.

    It is verified with the fleet's keyring before anyone can see it. Pushing the same bundle again
    changes nothing (200); another bundle under an existing name and version is refused (409).
    """
    refuse_declared(request, LIMITS.bundle_bytes)
    now_ms = here.now_ms()

    def allow_and_record(session: Session, pushed: Pushed) -> None:
        # only now is it known whose bundle this is; a refusal here undoes the push
        check_scope(who, bundle=pushed.name)
        record(
            session,
            who,
            at_ms=now_ms,
            action="bundle.push",
            subject=f"{pushed.name}:{pushed.version}",
            detail={"digest": pushed.digest, "created": pushed.created},
        )

    with await run_in_threadpool(here.bundles.receive) as upload:
        await _receive(request, upload)
        pushed = await run_in_threadpool(upload.finish, now_ms=now_ms, record=allow_and_record)
    return answer(pushed, HTTPStatus.CREATED if pushed.created else HTTPStatus.OK)


@router.get("", openapi_extra=returns(BundleView, many=True))
def index(
    _: AsViewer,
    here: Here,
    name: str | None = None,
    after: Cursor = "",
    limit: Limit = 100,
) -> Response:
    """List bundles by name and version."""
    behind, _sep, version = after.partition(":")
    with here.database.read() as session:
        rows = list_bundles(session, name=name, after=(behind, version), limit=limit + 1)
        return page(
            [bundle_view(row) for row in rows], limit, lambda one: f"{one.name}:{one.version}"
        )


@router.get("/{name}/{version}", openapi_extra=returns(BundleDetail))
def show(_: AsViewer, here: Here, name: str, version: str) -> Response:
    """One bundle with its variants and the description of its first variant."""
    with here.database.read() as session:
        return answer(bundle_detail(find_bundle(session, name, version)))


async def _receive(request: Request, upload: Upload) -> None:
    received, waiting = 0, bytearray()
    async for chunk in request.stream():
        received += len(chunk)
        if received > LIMITS.bundle_bytes:
            raise too_large(LIMITS.bundle_bytes)
        waiting += chunk
        if len(waiting) >= CHUNK_BYTES:
            await run_in_threadpool(upload.write, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(upload.write, bytes(waiting))
