"""Which variant of a bundle a machine should run: one function for device, planning and CLI."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgepack_contract.errors import UnsupportedBundleError
from edgepack_contract.hardware import Hardware
from edgepack_contract.oci import Descriptor, ImageIndex, Key, OciPlatform

_RELEASE = re.compile(r"\A(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?")


@dataclass(frozen=True, slots=True)
class Variant:
    """One entry of a bundle index, with its annotations decoded.

    ``position`` is its place in the index. ``memory_bytes`` is what it needs at most, if it says.
    """

    name: str
    position: int
    manifest: Descriptor
    platform: OciPlatform
    features: frozenset[str]
    min_runtime: str
    memory_bytes: int | None


def read_variants(index: ImageIndex) -> list[Variant]:
    """The variants of a bundle index that ``parse_index`` returned, in its order."""
    return [_read_variant(position, entry) for position, entry in enumerate(index.manifests)]


def select_variant(index: ImageIndex, hardware: Hardware) -> list[Variant]:
    """The variants that fit ``hardware``, best first.

    A variant fits when its platform is the machine's, its features are a subset of the machine's,
    its minimum runtime is installed, and the memory it needs is there. More features first, then
    the order of the index.

    Raises:
        UnsupportedBundleError: None fits; the message has the reason of each.
    """
    reasons: list[str] = []
    fitting: list[Variant] = []
    for variant in read_variants(index):
        reason = misfit(variant, hardware)
        if reason is None:
            fitting.append(variant)
        else:
            reasons.append(f"{variant.name}: {reason}")
    if not fitting:
        raise UnsupportedBundleError(
            f"no variant of this bundle fits this machine: {'; '.join(reasons)}",
            code="no-variant",
        )
    return sorted(fitting, key=lambda variant: (-len(variant.features), variant.position))


def alternatives(index: ImageIndex, hardware: Hardware) -> list[Variant]:
    """The variants that a machine chooses among: the best one, and those of the same features.

    The first that does well on the machine itself is the one to run.

    Raises:
        UnsupportedBundleError: None fits.
    """
    ranked = select_variant(index, hardware)
    return [variant for variant in ranked if variant.features == ranked[0].features]


def misfit(variant: Variant, hardware: Hardware) -> str | None:
    """Why ``variant`` does not fit ``hardware``; None when it does."""
    wanted = variant.platform
    if (wanted.os, wanted.architecture) != (hardware.os, hardware.architecture):
        return (
            f"built for {wanted.os}/{wanted.architecture}, this is "
            f"{hardware.os}/{hardware.architecture}"
        )
    if wanted.variant is not None and wanted.variant != hardware.variant:
        return f"built for {wanted.architecture} {wanted.variant}, this is {hardware.variant}"
    missing = variant.features - set(hardware.features)
    if missing:
        return f"the processor has no {', '.join(sorted(missing))}"
    if _release(hardware.onnxruntime) < _release(variant.min_runtime):
        return f"needs onnxruntime {variant.min_runtime}, {hardware.onnxruntime} is installed"
    if variant.memory_bytes is not None and variant.memory_bytes > hardware.memory_bytes:
        return f"needs {variant.memory_bytes} bytes of memory, {hardware.memory_bytes} are there"
    return None


def _read_variant(position: int, entry: Descriptor) -> Variant:
    if entry.platform is None:
        raise ValueError("a bundle index is read by parse_index, which refuses this")
    notes = entry.annotations
    memory = notes.get(Key.MEMORY)
    return Variant(
        name=notes[Key.VARIANT],
        position=position,
        manifest=entry,
        platform=entry.platform,
        features=frozenset(filter(None, notes[Key.FEATURES].split(","))),
        min_runtime=notes[Key.MIN_RUNTIME],
        memory_bytes=None if memory is None else int(memory),
    )


def _release(version: str) -> tuple[int, int, int]:
    """The numbers of a release; something unreadable counts as older than everything."""
    match = _RELEASE.match(version)
    if match is None:
        return (0, 0, 0)
    major, minor, patch = match.groups(default="0")
    return (int(major), int(minor), int(patch))
