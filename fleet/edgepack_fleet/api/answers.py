"""How answers are written: JSON of the project's own types, lists with a cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Query
from fastapi.responses import Response

T = TypeVar("T")

MAX_ITEMS = 1000
COMPONENTS = "#/components/schemas/{name}"

Limit = Annotated[int, Query(ge=1, le=MAX_ITEMS, description="At most this many items.")]
Cursor = Annotated[
    str, Query(max_length=256, description="`next` of the page before; empty for the first page.")
]


def answer(document: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """One document as JSON. A number that is not finite becomes null."""
    return Response(
        msgspec.json.encode(document), status_code=status, media_type="application/json"
    )


def page(items: Sequence[T], limit: int, cursor_of: Callable[[T], str]) -> Response:
    """One page of a list.

    Args:
        items: Up to ``limit + 1`` items; the one too many says that there is a next page.
        limit: Items on the page.
        cursor_of: What the next page starts behind, of the last item on this one.
    """
    shown = items[:limit]
    more = len(items) > limit
    return answer({"items": shown, "next": cursor_of(shown[-1]) if more else None})


def returns(shape: type[Any], status: int = 200, *, many: bool = False) -> dict[str, Any]:
    """What OpenAPI says of a route that answers with ``shape``, or with pages of it."""
    one = {"$ref": COMPONENTS.format(name=shape.__name__)}
    listing = {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": one},
            "next": {"type": ["string", "null"]},
        },
    }
    content = {"application/json": {"schema": listing if many else one}}
    return {"responses": {str(status): {"description": "Done", "content": content}}}
