"""The model repository extension, for models that only a fleet or a file puts here.

Source: github.com/triton-inference-server/server, ``docs/protocol/extension_model_repository.md``.
Unloading lets a slot answer nothing until it is loaded again or the daemon starts anew: it changes
what callers are told, not which model is installed. Loading never brings a model in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edgepack_runtime.inference.errors import BadRequestError
from edgepack_runtime.serving.errors import NoModelError
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.serving.status import tenures

S = TypeVar("S", bound=msgspec.Struct)


class _IndexRequest(msgspec.Struct, frozen=True):
    ready: bool = False


class _ChangeRequest(msgspec.Struct, frozen=True):
    parameters: dict[str, Any] = {}


def index(slots: Mapping[str, Slot], body: bytes) -> list[dict[str, str]]:
    """The repository index.

    Raises:
        BadRequestError: The body is not a request for it.
    """
    only_ready = _parsed(body, _IndexRequest, '{"ready": true or false}').ready
    return [
        entry for slot in slots.values() if slot.ready or not only_ready for entry in _entries(slot)
    ]


def load(slot: Slot, body: bytes) -> None:
    """Let a slot answer again; nothing changes when it does already.

    Raises:
        BadRequestError: Another model, or another configuration of it, is asked for.
        NoModelError: There is no model that could answer.
    """
    for name in _parsed(body, _ChangeRequest, '{"parameters": {...}}').parameters:
        if name == "config" or name.startswith("file:"):
            raise BadRequestError(
                f"failed to load {slot.name!r}: the parameter {name[:80]!r} is not supported; "
                "models and their configuration come signed from the fleet, or from the bundle"
            )
    slot.unloaded = False
    if not slot.ready:
        raise NoModelError(f"failed to load {slot.name!r}: {slot.why_unready}")


def unload(slot: Slot, body: bytes) -> None:
    """Let a slot answer nothing until :func:`load`; its model stays installed.

    Raises:
        BadRequestError: The body is not a request for it.
    """
    _parsed(body, _ChangeRequest, '{"parameters": {...}}')
    slot.unloaded = True


def _entries(slot: Slot) -> list[dict[str, str]]:
    """One for each version that can be asked for; one without a version where there is none."""
    told = {
        "name": slot.name,
        "state": "READY" if slot.ready else "UNAVAILABLE",
        "reason": "" if slot.ready else "unloaded" if slot.unloaded else "no bundle can serve",
    }
    return [told | {"version": one.model.version} for one in tenures(slot)] or [told]


def _parsed(body: bytes, kind: type[S], expected: str) -> S:
    if not body.strip():
        return kind()
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"expected {expected} or nothing: {error}") from error
