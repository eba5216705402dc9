"""``edgepack.json``: what one variant of a bundle is, needs, promises and was made from.

Everything in it is a decision or a fact about the model. Timings and memory figures of a build
machine are evidence and live outside the bundle's identity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from edgepack_contract.bundle_json import decode_bundle_json
from edgepack_contract.canonical import canonical_json
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import is_id, is_version

SCHEMA: Literal["edgepack/1"] = "edgepack/1"

DESCRIPTION_PATH = "edgepack.json"
MODEL_PATH = "model.onnx"
MODEL_DATA_PATH = "model.onnx.data"
GOLDEN_PATH = "golden.safetensors"
REFERENCE_PATH = "reference.json"

REQUIRED_PATHS = (MODEL_PATH, GOLDEN_PATH)
"""A variant without a model cannot serve; one without golden rows must not."""

Task = Literal["classification", "regression", "other"]
Precision = Literal["fp32", "fp16", "int8-static", "int8-dynamic", "int8-weights", "int4-weights"]
"""``-weights``: only weights are stored in so many bits, and computed with in float."""
Role = Literal["data", "state"]
Kind = Literal["data", "label", "probabilities", "scores", "values"]
DType = Literal[
    "float16", "float32", "float64", "bfloat16", "bool", "str",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
]  # fmt: skip
GateVerdict = Literal["pass", "inconclusive", "not_applicable", "not_measured"]
"""``fail`` is missing on purpose: no bundle is written from a candidate outside its gates."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Finite = Annotated[float, msgspec.Meta(ge=-1e308, le=1e308)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Tolerance = Annotated[float, msgspec.Meta(ge=0.0, le=1e308)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]
DigestText = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Release = Annotated[
    str, msgspec.Meta(pattern=r"\A(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\Z")
]
Feature = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9_-]{0,31}\Z")]
Operator = Annotated[str, msgspec.Meta(pattern=r"\A[\w.-]{1,128}:\w{1,128}\Z")]
Threads = Annotated[int, msgspec.Meta(ge=0, le=1024)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
DimensionName = Annotated[str, msgspec.Meta(pattern=r"\A[!-~]{1,64}\Z")]

_PATH_PART = r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?"
_PATH = re.compile(rf"\A{_PATH_PART}(?:/{_PATH_PART}){{0,2}}\Z")


class DimensionRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes that a named dimension may take, both ends included."""

    minimum: Size
    maximum: Size


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input or output of the graph.

    ``dtype`` is numpy's name. A dimension is a size or a name; equal names mean equal sizes.
    ``features`` name the columns of the last dimension, ``labels`` the classes in the order of the
    graph. An input with role ``state`` is fed from the output named ``source``.
    """

    name: Name
    dtype: DType
    shape: Annotated[list[Size | DimensionName], msgspec.Meta(max_length=16)]
    features: list[Name] | None = None
    labels: list[Name] | None = None
    role: Role = "data"
    kind: Kind = "data"
    source: Name | None = None


class Platform(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The OCI platform; without ``variant`` any variant of the architecture will do.

    The levels of amd64 (x86-64-v2 and so on) are features, not platform variants.
    """

    os: Literal["linux"] = "linux"
    architecture: Literal["amd64", "arm64"]
    variant: Literal["v8"] | None = None


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How onnxruntime is to be set up; 0 threads leaves the number to the device's config."""

    intra_op_threads: Threads = 0
    inter_op_threads: Threads = 0
    spinning: bool = False
    prepacking: bool = True


class Budgets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the device may be asked for at most: p95 milliseconds of one row, and bytes."""

    latency_ms: Annotated[float, msgspec.Meta(gt=0.0, le=1e9)] | None = None
    size_bytes: Positive | None = None
    memory_bytes: Positive | None = None


class DeclaredGate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gate of the build and what it said, ``max-drop accuracy 1 points`` for example."""

    name: Name
    metric: Name
    threshold: Finite
    unit: Name
    verdict: GateVerdict


class Metric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure with the number of rows behind it and its interval at ``confidence``.

    ``dataset`` is the digest or the name of the rows. ``reference`` says what the figure is
    relative to (``source`` for the model as it came), and is absent for an absolute figure.
    """

    name: Name
    value: Finite
    n: Positive
    low: Finite
    high: Finite
    confidence: Share
    dataset: Name
    reference: Name | None = None


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How golden rows are judged, and how the tolerance was derived, in words."""

    rows: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    atol: Tolerance
    rtol: Tolerance
    top1_agreement: Share
    derived: Text


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model was made from: digests of sources and data, versions of tools, passes."""

    source_digest: DigestText
    framework: Name
    data: dict[Name, Text] = {}
    tools: dict[Name, Text] = {}
    passes: list[Name] = []


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the variant; ``edgepack.json`` itself is not listed, since it holds the list."""

    path: str
    size: Annotated[int, msgspec.Meta(ge=0, le=LIMITS.layer_bytes)]
    digest: DigestText


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of ``edgepack.json``. ``write_bundle`` fills in ``files``."""

    schema: Literal["edgepack/1"] = SCHEMA
    name: str
    version: str
    variant: str
    security_version: Count = 0
    task: Task
    inputs: Annotated[list[TensorSpec], msgspec.Meta(min_length=1, max_length=1024)]
    outputs: Annotated[list[TensorSpec], msgspec.Meta(min_length=1, max_length=1024)]
    dimensions: dict[DimensionName, DimensionRange] = {}
    precision: Precision
    quantization: dict[str, Any] | None = None
    ir_version: Annotated[int, msgspec.Meta(ge=3, le=1000)]
    opsets: Annotated[
        dict[Name, Annotated[int, msgspec.Meta(ge=1, le=1000)]], msgspec.Meta(min_length=1)
    ]
    operators: Annotated[list[Operator], msgspec.Meta(max_length=4096)]
    min_runtime: Release
    platform: Platform
    features: Annotated[list[Feature], msgspec.Meta(max_length=64)] = []
    session: SessionOptions = SessionOptions()
    budgets: Budgets = Budgets()
    gates: list[DeclaredGate] = []
    metrics: list[Metric] = []
    golden: Golden
    provenance: Provenance
    on_nonfinite: Literal["refuse", "count"] = "refuse"
    files: Annotated[list[FileEntry], msgspec.Meta(max_length=LIMITS.files_per_variant)] = []

    def to_bytes(self) -> bytes:
        """The canonical bytes, which are the file.

        Raises:
            ValueError: A number is NaN or infinite.
        """
        return canonical_json(self)

    @property
    def has_reference(self) -> bool:
        """Whether a drift reference travels with the variant."""
        return any(entry.path == REFERENCE_PATH for entry in self.files)


def is_file_path(path: str) -> bool:
    """Whether ``path`` may name a file of a variant.

    At most three parts of ``a-z 0-9 . _ -`` that begin and end with a letter or digit: nothing
    absolute, hidden, upper-case (two names that one file system takes for the same) or escaping.
    """
    return _PATH.match(path) is not None


def parse_description(raw: bytes) -> Description:
    """Decode and check ``edgepack.json``.

    Raises:
        MalformedBundleError: It does not decode, or a field is missing, unknown or out of range;
            the message names the field.
    """
    description = decode_bundle_json(
        raw, Description, what=DESCRIPTION_PATH, max_bytes=LIMITS.description_bytes
    )
    _check_identity(description)
    _check_tensors(description)
    _check_figures(description)
    _check_files(description)
    return description


def _wrong(field: str, why: str) -> MalformedBundleError:
    return MalformedBundleError(f"{DESCRIPTION_PATH}: {field}: {why}", code="bad-description")


def _check_identity(description: Description) -> None:
    for field, value in (("name", description.name), ("variant", description.variant)):
        if not is_id(value):
            raise _wrong(field, f"{value[:80]!r} is not 1 to 63 of a-z, 0-9 and '-'")
    if not is_version(description.version):
        raise _wrong("version", f"{description.version[:80]!r} is not a semantic version")
    _check_sorted("features", description.features)
    _check_sorted("operators", description.operators)


def _check_sorted(field: str, values: list[str]) -> None:
    if values != sorted(set(values)):
        raise _wrong(field, "must be sorted and without repetition")


def _check_unique(field: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise _wrong(field, f"{value[:80]!r} is there twice")
        seen.add(value)


def _check_tensors(description: Description) -> None:
    outputs = {spec.name: spec for spec in description.outputs}
    for side, specs in (("inputs", description.inputs), ("outputs", description.outputs)):
        _check_unique(side, (spec.name for spec in specs))
        for spec in specs:
            _check_tensor(f"{side}.{spec.name}", spec)
    for spec in description.outputs:
        if spec.role != "data" or spec.source is not None:
            raise _wrong(f"outputs.{spec.name}", "only an input has the role state or a source")
    for spec in description.inputs:
        _check_state(spec, outputs)
    for name, sizes in description.dimensions.items():
        if sizes.minimum > sizes.maximum:
            raise _wrong(f"dimensions.{name}", f"{sizes.minimum} is over {sizes.maximum}")


def _check_tensor(field: str, spec: TensorSpec) -> None:
    for part, names in (("features", spec.features), ("labels", spec.labels)):
        _check_unique(f"{field}.{part}", names or ())
    last = spec.shape[-1] if spec.shape else None
    if spec.features is not None and isinstance(last, int) and len(spec.features) != last:
        raise _wrong(f"{field}.features", f"{len(spec.features)} names for {last} columns")


def _check_state(spec: TensorSpec, outputs: dict[str, TensorSpec]) -> None:
    field = f"inputs.{spec.name}.source"
    if (spec.role == "state") != (spec.source is not None):
        raise _wrong(field, "an input has a source exactly when its role is state")
    if spec.source is None:
        return
    output = outputs.get(spec.source)
    if output is None or output.dtype != spec.dtype:
        raise _wrong(field, f"{spec.source!r} is not an output of type {spec.dtype}")


def _check_figures(description: Description) -> None:
    for metric in description.metrics:
        if metric.low > metric.high:
            raise _wrong(f"metrics.{metric.name}", f"{metric.low} is over {metric.high}")
    if description.precision == "fp32" and description.quantization is not None:
        raise _wrong("quantization", "an fp32 variant has none")


def _check_files(description: Description) -> None:
    paths = [entry.path for entry in description.files]
    _check_sorted("files", paths)
    for path in paths:
        if not is_file_path(path) or path == DESCRIPTION_PATH:
            raise _wrong("files", f"{path[:120]!r} is not a path that a file may have")
    for parent in (path for path in paths if any(p.startswith(f"{path}/") for p in paths)):
        raise _wrong("files", f"{parent!r} is both a file and a folder")
    for required in REQUIRED_PATHS:
        if required not in paths:
            raise _wrong("files", f"{required} is missing")
    total = sum(entry.size for entry in description.files)
    if total > LIMITS.bundle_bytes:
        raise _wrong("files", f"{total} bytes together, at most {LIMITS.bundle_bytes}")
