"""How a gate may look for failures again and again without crying wolf.

Half of a gate's alpha is for looks until the end of the soak, half for looks from then on. In each
half the k-th look may be wrong with probability alpha/2 * (K + 1)/K / (k (k + 1)), which adds up to
alpha/2 over the K looks that were fixed when the rollout was planned (alpha spending: Lan and
DeMets, Biometrika 70, 1983; the sum telescopes). Early looks get much, since a bad model shows at
once with little evidence; the first look after the soak gets as much, since it has the most. With
few devices it matters: Student's t with 5 degrees of freedom is merciless at the levels of late
looks.
"""

from __future__ import annotations

SPREAD = 10.0
"""Looks are spaced by this share of the stage's age over K: with a thousand looks, by 1 %."""


def look_level(alpha: float, look: int, looks: int) -> float:
    """The level of look number ``look`` (from 1) out of ``looks``, in either half."""
    return 0.5 * alpha * (looks + 1) / looks / (look * (look + 1))


def look_is_due(now_ms: int, opened_ms: int, looked_ms: int | None, looks: int) -> bool:
    """Whether enough time passed since the last look, so that the looks last for days."""
    if looked_ms is None:
        return True
    return now_ms > looked_ms and (now_ms - looked_ms) * looks >= SPREAD * (now_ms - opened_ms)
