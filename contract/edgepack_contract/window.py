"""A window of telemetry: what one slot of one device did from one moment to another.

Topic ``telemetry/{slot}``. Counts are integers that add: any windows of the same session, slot,
bundle and reference that follow each other merge into one, exactly, in any order. Scalars for
display stand at the top level, so that tools which know nothing of edgepack can read them.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Annotated, Any, Literal, get_args

import msgspec

from edgepack_contract.canonical import decode
from edgepack_contract.latency import LatencyColumns, LatencyHistogram
from edgepack_contract.limits import LIMITS
from edgepack_contract.moments import Moments
from edgepack_contract.reference import MAX_FEATURES, Count, Counts, FeatureReference

ErrorKind = Literal[
    "bad_request", "shape", "nonfinite_input", "backend", "nonfinite_output", "overload", "deadline"
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)

DriftVerdict = Literal["no-data", "ok", "shifted", "drift"]
DRIFT_VERDICTS: tuple[DriftVerdict, ...] = get_args(DriftVerdict)
"""From the least to the most alarming."""

WindowRole = Literal["active", "shadow", "split"]
"""Who answered: the active model, or the candidate beside it, which in a shadow answers nobody."""

FLIP_CLASSES = 32
"""Flips between the first 32 classes are told apart: a fixed rule, unlike "the most frequent",
keeps merging exact."""

Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Slot = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")]
ReferenceId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Flip = Annotated[str, msgspec.Meta(pattern=r"\A(?:[12]?[0-9]|3[01])>(?:[12]?[0-9]|3[01])\Z")]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Finite = Annotated[float, msgspec.Meta(ge=-1.7e308, le=1.7e308)]
Duration = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]

CountColumn = Annotated[list[Count], msgspec.Meta(max_length=MAX_FEATURES)]
FloatColumn = Annotated[list[Finite], msgspec.Meta(max_length=MAX_FEATURES)]
EndColumn = Annotated[list[Finite | None], msgspec.Meta(max_length=MAX_FEATURES)]


class InputColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry per feature of the reference, in its order.

    ``counts`` as :mod:`edgepack_contract.reference` describes them. ``n``, ``mean``, ``m2``,
    ``min`` and ``max`` are the moments of the finite values, relative to the reference's mean and
    unit; ``min`` and ``max`` are null without any.
    """

    n: CountColumn = []
    null: CountColumn = []
    counts: Annotated[list[Counts], msgspec.Meta(max_length=MAX_FEATURES)] = []
    mean: FloatColumn = []
    m2: FloatColumn = []
    min: EndColumn = []
    max: EndColumn = []

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        columns = (self.null, self.counts, self.mean, self.m2, self.min, self.max)
        if any(len(column) != len(self.n) for column in columns):
            raise ValueError("columns of inputs have different lengths")

    def moments(self, feature: int) -> Moments:
        """The moments of one feature."""
        return Moments(
            self.n[feature], self.mean[feature], self.m2[feature],
            self.min[feature], self.max[feature],
        )  # fmt: skip

    def fits(self, features: list[FeatureReference]) -> bool:
        """Whether these are columns over the edges of ``features``."""
        return [len(row) for row in self.counts] == [item.columns for item in features]


class OutputColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts of answers: per class and ``other``, and over the fixed bins of the reference.

    Without probabilities or scores the three histograms are empty; a regression has ``values``.
    """

    classes: Counts = []
    score: Counts = []
    margin: Counts = []
    entropy: Counts = []
    values: InputColumns = InputColumns()


class Pairs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers of this model (new) and of ``against`` (old) to the same inputs.

    ``flips["3>7"]`` counts inputs for which the old model said class 3 and the new one class 7,
    for the first 32 classes; ``flips_other`` counts the rest. n = agree + flips + flips_other.
    """

    against: Digest
    n: Count = 0
    agree: Count = 0
    flips: Annotated[dict[Flip, Count], msgspec.Meta(max_length=FLIP_CLASSES**2)] = {}
    flips_other: Count = 0

    def __post_init__(self) -> None:
        """Refuse counts that do not add up."""
        if self.n != self.agree + sum(self.flips.values()) + self.flips_other:
            raise ValueError("pairs must agree or flip")


class Differences(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers that this model gave minus those of ``against``, for the same inputs.

    Moments of the finite differences of every float output, element by element, in the outputs' own
    unit; ``min`` and ``max`` are null without any.
    """

    against: Digest
    n: Count = 0
    mean: Finite = 0.0
    m2: Finite = 0.0
    min: Finite | None = None
    max: Finite | None = None

    @property
    def moments(self) -> Moments:
        """The moments, to be merged."""
        return Moments(self.n, self.mean, self.m2, self.min, self.max)

    @classmethod
    def of(cls, against: str, moments: Moments) -> Differences:
        """Differences to the answers of ``against`` with these moments."""
        return cls(
            against=against,
            n=moments.n,
            mean=moments.mean,
            m2=moments.m2,
            min=moments.low,
            max=moments.high,
        )


class WindowBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A window before it has a place in its session's sequence.

    Attributes:
        bundle: Index digest of the bundle that answered.
        role: Whether it was the active model or the candidate; for a shadow ``n`` are the inputs it
            saw, although its answers went to nobody. Rollouts are judged by the active model only.
        reference: Id of the reference whose edges were used, null without one.
        start_ms: Wall clock, milliseconds since 1970 UTC; ``end_ms`` likewise.
        n: Requests answered with a prediction; ``errors`` were refused or failed.
        rows: Rows in the answered requests; ``sampled`` of them are in ``inputs``.
        p50_ms: Like p95 and p99 for display, six digits, null without requests.
        over_budget: Answered requests over the bundle's latency budget.
        drift: The latest verdict of the device, null without a reference.
        merged: How many windows as first closed are in this one.
        probation: Some of it was in probation; ``throttled``: under a throttled processor.
    """

    slot: Slot
    bundle: Digest
    reference: ReferenceId | None
    start_ms: Count
    end_ms: Count
    n: Count = 0
    rows: Count = 0
    sampled: Count = 0
    errors: Count = 0
    over_budget: Count = 0
    p50_ms: Duration | None = None
    p95_ms: Duration | None = None
    p99_ms: Duration | None = None
    drift: DriftVerdict | None = None
    merged: Positive = 1
    probation: bool = False
    throttled: bool = False
    errors_by_kind: dict[ErrorKind, Count] = {}
    latency: LatencyColumns = LatencyColumns()
    inputs: InputColumns = InputColumns()
    outputs: OutputColumns = OutputColumns()
    pairs: Pairs | None = None
    role: WindowRole = "active"
    differences: Differences | None = None

    def __post_init__(self) -> None:
        """Refuse counts that contradict each other."""
        if self.end_ms < self.start_ms:
            raise ValueError("a window ends before it starts")
        if self.errors != sum(self.errors_by_kind.values()):
            raise ValueError("errors must be the sum of errors_by_kind")
        if self.sampled > self.rows:
            raise ValueError("more rows sampled than answered")


class Window(WindowBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A window with its place: it covers sequences ``first`` to ``last`` of (session, slot)."""

    session: Positive
    first: Positive
    last: Positive

    def __post_init__(self) -> None:
        """Refuse an interval that is empty."""
        WindowBody.__post_init__(self)
        if self.last < self.first:
            raise ValueError("last is before first")


def place(body: WindowBody, *, session: int, first: int, last: int) -> Window:
    """Give a window its place in the sequence of its session."""
    return Window(**msgspec.structs.asdict(body), session=session, first=first, last=last)


def parse_window(raw: bytes) -> Window:
    """Decode a window from a device.

    Raises:
        MalformedDocumentError: Not JSON, or a field is missing, unknown, out of range or at odds
            with another.
    """
    return decode(raw, Window, what="telemetry window", max_bytes=LIMITS.message_bytes)


def mergeable(one: WindowBody, two: WindowBody) -> bool:
    """Whether two windows count the same: same slot, bundle, role, reference and comparison."""
    return (
        (one.slot, one.bundle, one.role) == (two.slot, two.bundle, two.role)
        and one.reference == two.reference
        and _compared(one.pairs, two.pairs)
        and _compared(one.differences, two.differences)
        and _shape(one.inputs, two.inputs)
        and _shape(one.outputs.values, two.outputs.values)
    )  # fmt: skip


def merge_bodies(one: WindowBody, two: WindowBody) -> WindowBody:
    """Both windows as one; exact for counts, to 1e-9 for moments, in any order.

    Raises:
        ValueError: They do not count the same thing.
    """
    if not mergeable(one, two):
        raise ValueError("windows of different slots, bundles or references cannot be merged")
    return WindowBody(**_merged_fields(one, two))


def merge_windows(one: Window, two: Window) -> Window:
    """Merge two windows that follow each other in the same session, in either order.

    Raises:
        ValueError: They are of different sessions, do not follow each other, or do not count the
            same thing.
    """
    early, late = sorted((one, two), key=lambda window: window.first)
    if early.session != late.session or early.last + 1 != late.first:
        raise ValueError("only windows that follow each other in one session can be merged")
    body = merge_bodies(early, late)
    return place(body, session=early.session, first=early.first, last=late.last)


def _merged_fields(one: WindowBody, two: WindowBody) -> dict[str, Any]:
    latency = LatencyHistogram.of(one.latency)
    latency.merge(two.latency)
    sums = ("n", "rows", "sampled", "errors", "over_budget", "merged")
    return {
        "slot": one.slot,
        "bundle": one.bundle,
        "reference": one.reference,
        "start_ms": min(one.start_ms, two.start_ms),
        "end_ms": max(one.end_ms, two.end_ms),
        **{name: getattr(one, name) + getattr(two, name) for name in sums},
        **display_quantiles(latency),
        "drift": worst_verdict(one.drift, two.drift),
        "probation": one.probation or two.probation,
        "throttled": one.throttled or two.throttled,
        "errors_by_kind": _add_named(one.errors_by_kind, two.errors_by_kind),
        "latency": latency.columns(),
        "inputs": merge_inputs(one.inputs, two.inputs),
        "outputs": _merge_outputs(one.outputs, two.outputs),
        "pairs": _merge_pairs(one.pairs, two.pairs),
        "role": one.role,
        "differences": _merge_differences(one.differences, two.differences),
    }


def display_quantiles(latency: LatencyHistogram) -> dict[str, float | None]:
    """``p50_ms``, ``p95_ms`` and ``p99_ms`` with six digits."""
    seconds = {f"p{q}_ms": latency.quantile(q / 100) for q in (50, 95, 99)}
    return {
        name: None if value is None else float(f"{value * 1e3:.6g}")
        for name, value in seconds.items()
    }


def worst_verdict(one: DriftVerdict | None, two: DriftVerdict | None) -> DriftVerdict | None:
    """The more alarming of two verdicts."""
    known = [verdict for verdict in (one, two) if verdict is not None]
    return max(known, key=DRIFT_VERDICTS.index, default=None)


def merge_inputs(one: InputColumns, two: InputColumns) -> InputColumns:
    """Add the columns of two windows; one without any (nothing was counted) adds nothing.

    Raises:
        ValueError: They are over different edges.
    """
    if not _shape(one, two):
        raise ValueError("columns over different edges cannot be added")
    if not one.n or not two.n:
        return one if one.n else two
    moments = [one.moments(k).merge(two.moments(k)) for k in range(len(one.n))]
    return InputColumns(
        n=[item.n for item in moments],
        null=_add(one.null, two.null),
        counts=[_add(first, second) for first, second in zip(one.counts, two.counts, strict=True)],
        mean=[item.mean for item in moments],
        m2=[item.m2 for item in moments],
        min=[item.low for item in moments],
        max=[item.high for item in moments],
    )


def _shape(one: InputColumns, two: InputColumns) -> bool:
    if not one.n or not two.n:
        return True
    return [len(row) for row in one.counts] == [len(row) for row in two.counts]


def _merge_outputs(one: OutputColumns, two: OutputColumns) -> OutputColumns:
    return OutputColumns(
        classes=_add(one.classes, two.classes),
        score=_add(one.score, two.score),
        margin=_add(one.margin, two.margin),
        entropy=_add(one.entropy, two.entropy),
        values=merge_inputs(one.values, two.values),
    )


def _merge_pairs(one: Pairs | None, two: Pairs | None) -> Pairs | None:
    if one is None or two is None:
        return one or two
    return Pairs(
        against=one.against,
        n=one.n + two.n,
        agree=one.agree + two.agree,
        flips=_add_named(one.flips, two.flips),
        flips_other=one.flips_other + two.flips_other,
    )


def _merge_differences(one: Differences | None, two: Differences | None) -> Differences | None:
    if one is None or two is None:
        return one or two
    return Differences.of(one.against, one.moments.merge(two.moments))


def _compared(one: Pairs | Differences | None, two: Pairs | Differences | None) -> bool:
    return one is None or two is None or one.against == two.against


def _add(one: list[int], two: list[int]) -> list[int]:
    return [first + second for first, second in zip_longest(one, two, fillvalue=0)]


def _add_named(one: dict[Any, int], two: dict[Any, int]) -> dict[Any, int]:
    return {name: one.get(name, 0) + two.get(name, 0) for name in sorted({*one, *two})}
