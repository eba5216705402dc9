"""What the probe found of the variants of a bundle: a small file beside the one in the store.

``store/<hex>/tried.json`` lists the variants that were tried on this machine, in order; the last is
the one that the store holds. It is evidence and a help to decisions, never a condition: a bundle
without it serves all the same.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from edgepack_contract.canonical import canonical_json
from edgepack_contract.limits import KIB
from edgepack_contract.small_files import read_small
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.inference.probe import ProbeResult
from edgepack_runtime.storage.fsio import DurableFS

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * KIB
_FILE = "tried.json"


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One variant, and the verdict of its probe on this machine."""

    variant: str
    result: ProbeResult


def read_tried(folder: Path) -> list[Tried]:
    """The variants that were tried, the installed one last; empty when that is not known.

    Args:
        folder: The files of the variant, ``store/<hex>/model``.
    """
    try:
        raw = read_small(folder.parent / _FILE, MAX_BYTES)
        return msgspec.json.decode(raw, type=list[Tried])
    except (OSError, msgspec.DecodeError):
        return []


def chosen_figures(folder: Path) -> ProbeResult | None:
    """What the probe measured of the variant in ``folder``; None when that is not known."""
    tried = read_tried(folder)
    return tried[-1].result if tried and tried[-1].result.ok else None


def keep_tried(fs: DurableFS, folder: Path, tried: Tried) -> None:
    """Add a variant to those that were tried, in place of an earlier try of the same.

    A disk that does not take it changes nothing else.
    """
    others = [one for one in read_tried(folder) if one.variant != tried.variant]
    try:
        fs.clean_temporaries(folder.parent)
        fs.atomic_write(folder.parent / _FILE, canonical_json([*others, tried]))
    except DeviceError as error:
        logger.warning("figures not kept: %s", error, extra={"event": "figures_not_kept"})


def carry_tried(fs: DurableFS, entry: Path, staged: Path) -> None:
    """Take the record along when another variant of the bundle takes the place of ``entry``."""
    earlier = read_tried(entry / "model")
    if earlier:
        with fs.appending(staged / _FILE) as file:
            file.restart()
            file.write(canonical_json(earlier))
            file.finish()


def as_evidence(tried: list[Tried]) -> list[dict[str, Any]]:
    """The record as an event carries it."""
    return [
        {
            "variant": one.variant,
            "code": one.result.code,
            "words": one.result.words,
            "p50_ms": one.result.p50_ms,
            "p95_ms": one.result.p95_ms,
            "peak_bytes": one.result.peak_bytes,
        }
        for one in tried
    ]
