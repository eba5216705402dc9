"""``edgepack.lock``: the decisions of a build, with which it can be repeated to the same digest."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

import edgepack_contract
from edgepack_contract.atomic import replacing
from edgepack_contract.canonical import decode
from edgepack_contract.description import GateVerdict
from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_packager.errors import LockError
from edgepack_packager.quantize.plan import Plan

TOOLS = ("numpy", "onnx", "onnxruntime", "pyarrow", "safetensors")


class LockedVariant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant; ``verdicts`` are those of gates that needed a clock."""

    plan: Plan
    verdicts: dict[str, GateVerdict] = {}


class LockedTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The decision for one target: the best variant, then the alternatives in their order."""

    variants: Annotated[tuple[LockedVariant, ...], msgspec.Meta(min_length=1)]


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The decisions of a build and everything they were made from."""

    schema: Literal["edgepack-lock/1"] = "edgepack-lock/1"
    name: str
    version: str
    seed: int
    source: str
    data: dict[str, str]
    options: dict[str, str]
    tools: dict[str, str]
    targets: dict[str, LockedTarget]
    digest: str


def tool_versions() -> dict[str, str]:
    """Versions of what decides the bytes of a bundle."""
    versions = {name: importlib.metadata.version(name) for name in TOOLS}
    return {"edgepack": edgepack_contract.__version__, **versions}


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock, readable, with sorted keys.

    Raises:
        OSError: It cannot be written.
    """
    text = json.dumps(msgspec.to_builtins(lock), indent=2, sort_keys=True, ensure_ascii=False)
    with replacing(path) as part:
        part.write_text(text + "\n")


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        LockError: Missing, or not a lock.
    """
    try:
        raw = read_small(path, LIMITS.config_bytes)
        return decode(raw, Lock, what=str(path), max_bytes=LIMITS.config_bytes)
    except OSError as error:
        raise LockError(
            f"cannot read {path}: {error.strerror}; build without locked first", code="no-lock"
        ) from error
    except MalformedDocumentError as error:
        raise LockError(str(error), code="bad-lock") from error


def check_lock(lock: Lock, *, found: Mapping[str, object]) -> None:
    """Refuse a lock that was made from anything else.

    Args:
        lock: The lock.
        found: The values of this build, by the names of the lock's fields.

    Raises:
        LockError: Something differs; the message names it.
    """
    for name, value in found.items():
        locked = getattr(lock, name)
        if locked != value:
            raise LockError(
                f"the lock was made with {name} {_difference(locked, value)}; "
                "build without locked to make a new one",
                code="lock-differs",
            )


def _difference(locked: object, found: object) -> str:
    if isinstance(locked, dict) and isinstance(found, dict):
        changed = sorted(
            key for key in locked.keys() | found.keys() if locked.get(key) != found.get(key)
        )
        return ", ".join(
            f"{key} {locked.get(key, 'not given')} (now {found.get(key, 'not given')})"
            for key in changed
        )
    return f"{locked} (now {found})"
