"""Which file formats and opsets a release of onnxruntime reads.

There is no interface to ask for it (onnxruntime#14932 is open). The table holds, for the first
release that reads them, the versions of the ONNX release it was built with (docs/Versioning.md of
onnx); those of 1.31 were tried. A release between two lines reads what the earlier line says.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from edgepack_packager.errors import ConversionError


@dataclass(frozen=True, slots=True, order=True)
class Readable:
    """The newest file format and the newest opset of ai.onnx."""

    ir: int
    opset: int


_SINCE = {
    (1, 12): Readable(8, 16),
    (1, 13): Readable(8, 17),
    (1, 14): Readable(8, 18),
    (1, 15): Readable(9, 19),
    (1, 17): Readable(9, 20),
    (1, 18): Readable(10, 21),
    (1, 21): Readable(10, 22),
    (1, 23): Readable(11, 23),
    (1, 31): Readable(13, 26),
}

NEWEST = _SINCE[max(_SINCE)]
"""What the newest known release reads."""

_OLDEST = Readable(7, 15)


def readable(release: str) -> Readable:
    """What a release reads.

    Args:
        release: Such as ``1.31.1``.

    Raises:
        ValueError: No release number.
    """
    major, minor, *_ = (int(part) for part in release.split("."))
    known = [since for since in _SINCE if since <= (major, minor)]
    return _SINCE[max(known)] if known else _OLDEST


def unreadable(model: onnx.ModelProto, release: str) -> str:
    """Why a release of onnxruntime does not load ``model``, in words; empty when it may."""
    limit = readable(release)
    opset = next((item.version for item in model.opset_import if not item.domain), 0)
    if opset > limit.opset:
        return (
            f"it needs opset {opset}, and onnxruntime {release} reads {limit.opset} at most; "
            "export it with a lower opset, or update the devices"
        )
    if model.ir_version > limit.ir:
        return (
            f"it needs file format {model.ir_version}, and onnxruntime {release} reads "
            f"{limit.ir} at most; update the devices"
        )
    return ""


def check_readable(model: onnx.ModelProto, release: str, target: str) -> None:
    """Refuse a model that the devices of a target do not load.

    Raises:
        ConversionError: Their release of onnxruntime is too old for it.
    """
    words = unreadable(model, release)
    if words:
        raise ConversionError(
            f"target {target} cannot load this model: {words}", code="too-new-for-target"
        )
