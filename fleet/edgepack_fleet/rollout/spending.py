"""How a gate may look for failures again and again without crying wolf.

The k-th look of a gate may be wrong with probability alpha * (K + 1)/K / (k (k + 1)), which adds up
to alpha over the K looks that were fixed when the rollout was planned (alpha spending: Lan and
DeMets, Biometrika 70, 1983; the sum telescopes). Early looks get the most: they have the least
evidence, and a bad model shows at once.
"""

from __future__ import annotations

SPREAD = 10.0
"""Looks are spaced by this share of the stage's age over K: with a thousand looks, by 1 %."""


def look_level(alpha: float, look: int, looks: int) -> float:
    """The level of look number ``look`` (from 1) out of ``looks``."""
    return alpha * (looks + 1) / looks / (look * (look + 1))


def look_is_due(now_ms: int, opened_ms: int, looked_ms: int | None, looks: int) -> bool:
    """Whether enough time passed since the last look, so that the looks last for days."""
    if looked_ms is None:
        return True
    return now_ms > looked_ms and (now_ms - looked_ms) * looks >= SPREAD * (now_ms - opened_ms)
