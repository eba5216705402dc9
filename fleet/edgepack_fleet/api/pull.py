"""The OCI distribution pull API: what devices, skopeo and oras download bundles through.

OCI distribution specification 1.1, "pull" category: a repository per bundle name, tags for the
version, the signature and the evidence. Range and conditional requests make downloads resumable.
Authenticated by Basic, as registries are; every answer is verified by its digest at the client.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from edgepack_contract.canonical import canonical_json
from edgepack_contract.digest import CHUNK_BYTES
from edgepack_fleet.api.access import AsDevice
from edgepack_fleet.api.codings import wants_gzip
from edgepack_fleet.api.context import Here
from edgepack_fleet.api.ranges import Span, is_unchanged, requested_span
from edgepack_fleet.bundles import OCTETS, StoredBlob

router = APIRouter(prefix="/v2", include_in_schema=False)

_READ = ["GET", "HEAD"]
MAX_TAGS = 1000

Conditional = Annotated[str | None, Header(alias="If-None-Match")]


@router.api_route("/", methods=_READ)
def version(_: AsDevice) -> Response:
    """Whether this is a registry, and whether the credentials are good."""
    return _json({})


@router.api_route("/{name}/tags/list", methods=_READ)
def tags(
    _: AsDevice,
    here: Here,
    name: str,
    n: Annotated[int, Query(ge=1, le=MAX_TAGS)] = MAX_TAGS,
    last: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """The tags of a bundle name, sorted, ``n`` at a time."""
    with here.database.read() as session:
        known = here.bundles.tags(session, name)
    page = [tag for tag in sorted(known) if tag > last]
    response = _json({"name": name, "tags": page[:n]})
    if len(page) > n:
        response.headers["Link"] = f'</v2/{name}/tags/list?n={n}&last={page[n - 1]}>; rel="next"'
    return response


@router.api_route("/{name}/manifests/{reference}", methods=_READ)
def manifest(
    _: AsDevice,
    here: Here,
    request: Request,
    name: str,
    reference: str,
    if_none_match: Conditional = None,
) -> Response:
    """A bundle index or a manifest, by tag or by digest."""
    with here.database.read() as session:
        found = here.bundles.manifest(session, name, reference)
    headers = _headers(found.blob) | {"Content-Length": str(len(found.raw))}
    if is_unchanged(if_none_match, headers["ETag"]):
        return _not_modified(headers)
    body = b"" if request.method == "HEAD" else found.raw
    return Response(body, headers=headers, media_type=found.media_type)


@router.api_route("/{name}/blobs/{digest}", methods=_READ)
def blob(
    _: AsDevice,
    here: Here,
    request: Request,
    name: str,
    digest: str,
    asked: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range")] = None,
    if_none_match: Conditional = None,
    accepted: Annotated[str | None, Header(alias="Accept-Encoding")] = None,
) -> Response:
    """The bytes of a layer or of its compressed copy, whole or one range.

    The two are representations of one resource (RFC 9110, 8.8.3.3), each with its own strong
    validator, so that a download of either goes on where it was cut.
    """
    with here.database.read() as session:
        found = here.bundles.blob(session, name, digest)
    sent = _represented(found, packed=found.packed is not None and wants_gzip(accepted))
    headers = _headers(found) | sent.headers
    if is_unchanged(if_none_match, headers["ETag"]):
        return _not_modified(headers)
    span = requested_span(asked, sent.size, if_range=if_range, etag=headers["ETag"])
    if span is not None:
        headers["Content-Range"] = span.content_range
    part = span or Span(0, sent.size, sent.size)
    headers["Content-Length"] = str(part.length)
    status = 200 if span is None else 206
    if request.method == "HEAD":
        return Response(b"", status_code=status, headers=headers, media_type=OCTETS)
    return StreamingResponse(
        _bytes(sent.path, part), status_code=status, headers=headers, media_type=OCTETS
    )


@dataclass(frozen=True, slots=True)
class _Represented:
    """What is sent for a blob."""

    path: Path
    size: int
    headers: dict[str, str]


def _represented(found: StoredBlob, *, packed: bool) -> _Represented:
    headers = {"Accept-Ranges": "bytes", "Vary": "Accept-Encoding"}
    if not packed or found.packed is None:
        return _Represented(found.path, found.size, headers)
    headers |= {"Content-Encoding": "gzip", "ETag": f'"{found.digest}+gzip"'}
    return _Represented(found.packed, found.packed.stat().st_size, headers)


def _bytes(path: Path, span: Span) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(span.start)
        left = span.length
        while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


def _headers(found: StoredBlob) -> dict[str, str]:
    return {
        "ETag": f'"{found.digest}"',
        "Docker-Content-Digest": found.digest,
        # private, because it took credentials; a tag may move, so caches ask again
        "Cache-Control": "private, no-cache",
    }


def _not_modified(headers: dict[str, str]) -> Response:
    kept = {name: value for name, value in headers.items() if name != "Content-Length"}
    return Response(status_code=304, headers=kept)


def _json(document: object) -> Response:
    headers = {"Docker-Distribution-API-Version": "registry/2.0"}
    return Response(canonical_json(document), headers=headers, media_type="application/json")
