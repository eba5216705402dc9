"""``reference.json``: what the inputs and outputs of a model looked like when it was built.

A device counts its inputs over the edges given here, so that counts of devices, hours and cohorts
add up, and can be compared with the counts of the reference rows.

Columns of ``counts``, the same in a reference and in a window:

* a numeric feature with edges ``e0 < e1 < ... < ek`` has ``k + 2`` columns: ``[below, *bins,
  above]``. ``below`` counts ``x < e0``, bin ``j`` counts ``e(j) <= x < e(j+1)``, ``above`` counts
  ``x >= ek``. The outer edges enclose every reference row, so that the reference itself has zeros
  in ``below`` and ``above`` (unless the edges were inherited from an older reference).
* a category has one column per entry of ``categories`` and a last one, ``other``.

NaN (and a missing text) is counted in ``null`` and in no column; infinities are ``below`` or
``above``. So rows = null + sum(counts), always.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import msgspec

from edgepack_contract.bundle_json import decode_bundle_json
from edgepack_contract.canonical import canonical_json
from edgepack_contract.digest import hex_of, sha256_digest
from edgepack_contract.limits import LIMITS

SCHEMA: Literal["edgepack-reference/1"] = "edgepack-reference/1"

MAX_FEATURES = 512
"""More columns than this are described by four scalars per row instead: images, sound, text."""

MAX_EDGES = 65
MAX_CATEGORIES = 64
MAX_CLASSES = 4096

DESCRIPTORS = ("mean", "std", "min", "max")
"""The scalars that stand for a row of a tensor with more than ``MAX_FEATURES`` columns."""

DESCRIBED_VALUES = 16384
"""A longer row is described by every k-th of its values, which bounds the cost of a row."""

SHARE_EDGES = (
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999,
)  # fmt: skip
"""Bins of the top-1 score and of the margin: finer towards 1, where classifiers crowd."""

ENTROPY_EDGES = (
    0.0, 0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
)  # fmt: skip
"""Bins of the entropy divided by ln(classes): finer towards 0."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Counts = Annotated[list[Count], msgspec.Meta(max_length=MAX_CLASSES + 1)]
Finite = Annotated[float, msgspec.Meta(ge=-1.7e308, le=1.7e308)]
Label = Annotated[str, msgspec.Meta(max_length=256)]


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far counts of unchanged inputs vary: sums over the eigenvalues l of their covariance.

    With independent rows and B occupied columns, PSI / (1/n + 1/m) is a sum of B - 1 squared
    normals: (B - 1, B - 1, 1). Rows that follow each other in time vary more, and the eigenvalues
    of the long-run covariance say by how much.
    """

    sum_l: Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
    sum_l2: Annotated[float, msgspec.Meta(ge=0.0, le=1e18)]
    max_l: Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class FeatureReference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column of one tensor.

    ``index`` is the column of the tensor flattened to (rows, columns), or the place in
    ``DESCRIPTORS`` when ``source`` is ``descriptor``. Edges of a single precision tensor are
    representable in it; all other numbers are compared in double precision. ``mean`` and ``std``
    are of the finite reference values, and are the origin and the unit of the moments in a window
    (unit 1 where ``std`` is 0 or the feature is text).
    """

    tensor: Label
    feature: Label
    index: Annotated[int, msgspec.Meta(ge=0, le=MAX_FEATURES)]
    source: Literal["column", "descriptor"] = "column"
    kind: Literal["numeric", "category"]
    edges: Annotated[list[Finite], msgspec.Meta(max_length=MAX_EDGES)] = []
    categories: Annotated[list[Finite | Label], msgspec.Meta(max_length=MAX_CATEGORIES)] = []
    counts: Counts
    null: Count
    mean: Finite
    std: Annotated[float, msgspec.Meta(ge=0.0, le=1.7e308)]
    calibration: Calibration

    def __post_init__(self) -> None:
        """Refuse columns that do not fit the edges."""
        if bool(self.edges) == bool(self.categories) or bool(self.edges) != (
            self.kind == "numeric"
        ):
            raise ValueError(
                f"feature {self.feature!r}: a numeric has edges, a category has categories"
            )
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError(f"feature {self.feature!r}: edges must increase")
        if len({type(value) for value in self.categories}) > 1:
            raise ValueError(f"feature {self.feature!r}: categories are numbers or texts, not both")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"feature {self.feature!r}: a category is there twice")
        if len(self.counts) != self.columns:
            raise ValueError(
                f"feature {self.feature!r}: {len(self.counts)} counts for {self.columns} columns"
            )

    @property
    def columns(self) -> int:
        """The number of columns of ``counts``."""
        return len(self.edges or self.categories) + 1

    @property
    def textual(self) -> bool:
        """Whether the categories are texts."""
        return bool(self.categories) and isinstance(self.categories[0], str)

    @property
    def unit(self) -> float:
        """What one stands for in the moments."""
        return self.std or 1.0


class OutputHistogram(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts over ``[-inf, e0), [e0, e1), ..., [ek, inf)``: one more column than edges."""

    edges: Annotated[list[Finite], msgspec.Meta(min_length=1, max_length=MAX_EDGES)]
    counts: Counts

    def __post_init__(self) -> None:
        """Refuse columns that do not fit the edges."""
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges of an output must increase")
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.counts)} counts for {len(self.edges) + 1} columns")


class OutputReference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model answered on the reference rows.

    A classifier has ``classes``, ``class_counts`` (one column per class, then ``other``) and, when
    it gives probabilities or scores, the three histograms; a regression has ``values``.
    """

    classes: Annotated[list[Label], msgspec.Meta(max_length=MAX_CLASSES)] | None = None
    class_counts: Counts = []
    score: OutputHistogram | None = None
    margin: OutputHistogram | None = None
    entropy: OutputHistogram | None = None
    values: Annotated[list[FeatureReference], msgspec.Meta(max_length=MAX_FEATURES)] = []

    def __post_init__(self) -> None:
        """Refuse columns that do not fit the classes."""
        expected = 0 if self.classes is None else len(self.classes) + 1
        if len(self.class_counts) != expected:
            raise ValueError(f"{len(self.class_counts)} class counts, expected {expected}")


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of ``reference.json``. ``ordered``: the rows followed each other in time."""

    schema: Literal["edgepack-reference/1"] = SCHEMA
    rows: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    ordered: bool
    inputs: Annotated[list[FeatureReference], msgspec.Meta(max_length=MAX_FEATURES)]
    outputs: OutputReference

    def __post_init__(self) -> None:
        """Refuse two references for the same column."""
        places = {(item.tensor, item.source, item.index) for item in self.inputs}
        if len(places) != len(self.inputs):
            raise ValueError("two features stand for the same column")

    def to_bytes(self) -> bytes:
        """The canonical bytes, which are the file.

        Raises:
            ValueError: A number is NaN or infinite.
        """
        return canonical_json(self)


def parse_reference(raw: bytes) -> Reference:
    """Decode and check ``reference.json``.

    Raises:
        MalformedBundleError: It does not decode, or a field is missing, unknown or out of range.
    """
    return decode_bundle_json(
        raw, Reference, what="reference.json", max_bytes=LIMITS.reference_bytes
    )


def reference_id(reference: Reference) -> str:
    """A short digest of everything that decides what a column of a window means.

    Counts and calibration are left out: two bundles of which one inherited the edges of the other
    have the same id, and their windows may be compared and added.
    """
    layout = {
        "schema": reference.schema,
        "inputs": [_layout(item) for item in reference.inputs],
        "values": [_layout(item) for item in reference.outputs.values],
        "classes": reference.outputs.classes,
        "edges": [
            None if histogram is None else histogram.edges
            for histogram in (
                reference.outputs.score, reference.outputs.margin, reference.outputs.entropy,
            )
        ],
    }  # fmt: skip
    return hex_of(sha256_digest(canonical_json(layout)))[:16]


def _layout(item: FeatureReference) -> list[object]:
    return [
        item.tensor, item.feature, item.index, item.source, item.kind, item.edges, item.categories,
        item.mean, item.std,
    ]  # fmt: skip
