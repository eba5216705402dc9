"""What changed between two bundles, and what of the new one a device does not have yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgepack_contract.bundle import open_bundle, open_variant
from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH, Description, Metric
from edgepack_contract.trusted import TrustedBundle, TrustedVariant
from edgepack_contract.unpacked import LocalBundle, extract
from edgepack_packager.errors import InputError
from edgepack_packager.quantize.share import weights

_MODEL_PATHS = (MODEL_PATH, MODEL_DATA_PATH)
_ASIDE = frozenset({"name", "version", "variant", "files", "metrics", "gates", "inputs", "outputs"})
"""Fields of a description that are compared in a way of their own, or say nothing new."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs.

    Attributes:
        what: Its name: a field, ``metrics.accuracy`` or ``inputs.pixels``.
        before: In the first bundle; None where it was not there.
        after: In the second; None where it is gone.
    """

    what: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Tensors:
    """How many constants of a graph are other ones, and what share of the new graph's bytes.

    Attributes:
        changed: Of the same name, with another type, shape or values.
        added: Of names that the first graph has not.
        removed: Of names that the second graph has not.
        total: In the second graph.
        share: Of its bytes, those that are changed or added.
    """

    changed: int
    added: int
    removed: int
    total: int
    share: float


@dataclass(frozen=True, slots=True)
class VariantDiff:
    """What changed in a variant that both bundles have.

    Attributes:
        changes: Of what the bundle says of it.
        files: Paths of files with other bytes, or that only one side has.
        tensors: Of its graph.
        bytes: Of all its layers in the second bundle: what a device fetches.
        new_bytes: Of those layers that the first bundle's variant has not.
    """

    changes: tuple[Change, ...]
    files: tuple[str, ...]
    tensors: Tensors
    bytes: int
    new_bytes: int


@dataclass(frozen=True, slots=True)
class BundleDiff:
    """What changed between two bundles.

    Attributes:
        before: Name, version and digest of the first.
        after: The same of the second.
        equal: Whether they are one and the same: their digests are equal.
        changes: Of what is said of the whole bundle.
        added: Variants that only the second has, with their bytes.
        removed: Variants that only the first has.
        variants: By name, what changed in those that both have.
    """

    before: Mapping[str, str]
    after: Mapping[str, str]
    equal: bool
    changes: tuple[Change, ...]
    added: Mapping[str, int]
    removed: tuple[str, ...]
    variants: Mapping[str, VariantDiff]


def diff_bundles(before: LocalBundle, after: LocalBundle) -> BundleDiff:
    """Compare two bundles, which are read and proven but whose signatures are not checked.

    Raises:
        BundleError: One of them is not intact.
        InputError: A model is no ONNX.
    """
    one, two = _open(before), _open(after)
    old, new = _variants(one, before), _variants(two, after)
    return BundleDiff(
        before=_named(one),
        after=_named(two),
        equal=one.digest == two.digest,
        changes=tuple(_whole(one, two)),
        added={name: _bytes(new[name]) for name in new if name not in old},
        removed=tuple(name for name in old if name not in new),
        variants={
            name: _variant((old[name], before), (new[name], after)) for name in new if name in old
        },
    )


def _open(source: LocalBundle) -> TrustedBundle:
    return open_bundle(source, source.digest, keyring=None)


def _variants(bundle: TrustedBundle, source: LocalBundle) -> dict[str, TrustedVariant]:
    return {item.name: open_variant(bundle, source, item) for item in bundle.variants}


def _named(bundle: TrustedBundle) -> dict[str, str]:
    return {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}


def _whole(one: TrustedBundle, two: TrustedBundle) -> Iterator[Change]:
    yield from _change("name", one.name, two.name)
    yield from _change("version", one.version, two.version)
    yield from _change("security_version", one.security_version, two.security_version)


def _change(what: str, before: Any, after: Any) -> Iterator[Change]:
    if before != after:
        yield Change(what, before, after)


def _bytes(variant: TrustedVariant) -> int:
    return sum(layer.size for layer in variant.layers.values())


def _variant(
    before: tuple[TrustedVariant, LocalBundle], after: tuple[TrustedVariant, LocalBundle]
) -> VariantDiff:
    old, new = before[0].layers, after[0].layers
    known = {layer.digest for layer in old.values()}
    other = {path for path in old.keys() & new.keys() if old[path].digest != new[path].digest}
    return VariantDiff(
        changes=tuple(compare(before[0].description, after[0].description)),
        files=tuple(sorted(other | (old.keys() ^ new.keys()))),
        tensors=_tensors(before, after),
        bytes=_bytes(after[0]),
        new_bytes=sum(layer.size for layer in new.values() if layer.digest not in known),
    )


def compare(old: Description, new: Description) -> Iterator[Change]:
    """What two descriptions of a variant say differently, in the order of their fields."""
    one, two = msgspec.to_builtins(old), msgspec.to_builtins(new)
    yield from _by_key("inputs", _by_name(one["inputs"]), _by_name(two["inputs"]))
    yield from _by_key("outputs", _by_name(one["outputs"]), _by_name(two["outputs"]))
    for field in (name for name in one if name not in _ASIDE):
        yield from _deep(field, one[field], two[field])
    yield from _by_key("metrics", _metrics(old.metrics), _metrics(new.metrics))
    gates = [{f"{gate.name} {gate.metric}": gate for gate in side.gates} for side in (old, new)]
    yield from _by_key("gates", msgspec.to_builtins(gates[0]), msgspec.to_builtins(gates[1]))


def _deep(what: str, old: Any, new: Any) -> Iterator[Change]:
    """The innermost fields that differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        yield from _change(what, old, new)
        return
    for key in dict.fromkeys([*old, *new]):
        yield from _deep(f"{what}.{key}", old.get(key), new.get(key))


def _by_key(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys([*old, *new]):
        yield from _change(f"{what}.{key}", old.get(key), new.get(key))


def _by_name(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {item["name"]: item for item in items}


def _metrics(metrics: Sequence[Metric]) -> dict[str, Any]:
    named = ((f"{m.name} against {m.reference}" if m.reference else m.name, m) for m in metrics)
    return {name: msgspec.to_builtins(metric) for name, metric in named}


def _tensors(
    before: tuple[TrustedVariant, LocalBundle], after: tuple[TrustedVariant, LocalBundle]
) -> Tensors:
    new = _constants(*after)
    same = all(before[0].layers.get(p) == after[0].layers.get(p) for p in _MODEL_PATHS)
    old = new if same else _constants(*before)
    changed = {name for name in old.keys() & new.keys() if old[name] != new[name]}
    added = new.keys() - old.keys()
    total = sum(size for _, size in new.values())
    fresh = sum(new[name][1] for name in changed | added)
    return Tensors(
        changed=len(changed),
        added=len(added),
        removed=len(old.keys() - new.keys()),
        total=len(new),
        share=round(fresh / total, 4) if total else 0.0,
    )


def _graph(path: Path) -> onnx.GraphProto:
    try:
        return onnx.load(path).graph
    except (DecodeError, ValueError) as error:
        raise InputError(
            f"{path.name} in the bundle is no ONNX: {error}", code="no-onnx"
        ) from error


def _constants(variant: TrustedVariant, source: LocalBundle) -> dict[str, tuple[str, int]]:
    """A digest over type, shape and values of every constant by name, and its bytes."""
    with TemporaryDirectory(prefix="edgepack-diff-") as made:
        folder = Path(made)
        extract(variant, source, folder)
        graph = _graph(folder / MODEL_PATH)
    found: dict[str, tuple[str, int]] = {}
    for number, tensor in enumerate(weights(graph)):
        raw = onnx.numpy_helper.to_array(tensor).tobytes()
        hasher = hashlib.sha256(f"{tensor.data_type} {list(tensor.dims)} ".encode())
        hasher.update(raw)
        found[tensor.name or f"constant {number}"] = (hasher.hexdigest(), len(raw))
    return found
