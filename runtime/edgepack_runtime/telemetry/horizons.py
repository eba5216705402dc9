"""Watch the inputs for drift over the last minute, hour and day.

A busy slot is judged within a minute, a quiet one once it has seen enough; each on the shortest
stretch that suffices, so that a late verdict is never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack_contract.drift import FeatureDrift, judge
from edgepack_contract.reference import FeatureReference
from edgepack_contract.statistics import Tally
from edgepack_contract.window import DRIFT_VERDICTS, DriftVerdict, worst_verdict

Integers = NDArray[np.int64]

SPANS_MS = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
"""From the shortest to the longest."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Counts of a stretch of time that is over."""

    span: str
    counts: Integers
    null: Integers


@dataclass(frozen=True, slots=True)
class DriftReport:
    """The verdict over all features, and what was found on which span for each of them.

    ``features`` holds those that had any closed span; the key is ``tensor/feature``.
    """

    verdict: DriftVerdict
    features: dict[str, tuple[str, FeatureDrift]]

    def evidence(self) -> dict[str, Any]:
        """What changed and how surely, as plain JSON for an event."""
        return {
            name: {
                "span": span,
                "verdict": found.verdict,
                "n": found.n,
                "psi": found.psi,
                "shifted_p": found.shifted_p,
                "drift_p": found.drift_p,
                "unseen_p": found.unseen_p,
            }
            for name, (span, found) in self.features.items()
            if found.verdict in ("shifted", "drift")
        }


@dataclass(frozen=True, slots=True)
class DriftEvidence:
    """A snapshot to be judged, in any thread: judging hundreds of features takes milliseconds."""

    features: tuple[FeatureReference, ...]
    closed: tuple[Closed, ...]

    def judge(self, alpha: float) -> DriftReport:
        """Judge every feature on the shortest span that has enough rows."""
        verdict: DriftVerdict = "no-data"
        found: dict[str, tuple[str, FeatureDrift]] = {}
        for place, feature in enumerate(self.features):
            judged = self._feature(place, feature, alpha)
            if judged is not None:
                found[f"{feature.tensor}/{feature.feature}"] = judged
                verdict = worst_verdict(verdict, judged[1].verdict) or verdict
        return DriftReport(verdict, found)

    def _feature(
        self, place: int, feature: FeatureReference, alpha: float
    ) -> tuple[str, FeatureDrift] | None:
        judged: list[tuple[str, FeatureDrift]] = []
        for closed in self.closed:
            counts = closed.counts[place, : feature.columns].tolist()
            found = judge(feature, counts, int(closed.null[place]), alpha=alpha)
            judged.append((closed.span, found))
            if found.n_min is not None and found.n >= found.n_min:
                break
        # a column never seen counts on any span, and must not hide what a longer one tells
        return max(judged, key=lambda item: DRIFT_VERDICTS.index(item[1].verdict), default=None)


class _Span:
    """One stretch that is being filled, and the last that was."""

    def __init__(self, name: str, empty: Tally, start_ms: int) -> None:
        self._name = name
        self._empty = empty
        self._start_ms = start_ms
        self._counts, self._null = empty.counts, empty.null
        self.closed: Closed | None = None

    def add(self, tally: Tally, end_ms: int) -> bool:
        self._counts = self._counts + tally.counts
        self._null = self._null + tally.null
        # a clock that was set back starts the stretch again, with what it has
        self._start_ms = min(self._start_ms, end_ms)
        if end_ms - self._start_ms < SPANS_MS[self._name]:
            return False
        self.closed = Closed(self._name, self._counts, self._null)
        self._start_ms = end_ms
        self._counts, self._null = self._empty.counts, self._empty.null
        return True


class DriftWatch:
    """Adds windows up to spans. Not thread-safe."""

    def __init__(self, features: Sequence[FeatureReference], empty: Tally, start_ms: int) -> None:
        self._features = tuple(features)
        self._spans = [_Span(name, empty, start_ms) for name in SPANS_MS]
        self._news = False

    def add(self, tally: Tally, end_ms: int) -> None:
        """Add a window that ended at ``end_ms``."""
        closed = [span.add(tally, end_ms) for span in self._spans]
        self._news = self._news or any(closed)

    def evidence(self) -> DriftEvidence | None:
        """What to judge, None when no span was closed since the last call."""
        if not self._news:
            return None
        self._news = False
        closed = tuple(span.closed for span in self._spans if span.closed is not None)
        return DriftEvidence(self._features, closed)
