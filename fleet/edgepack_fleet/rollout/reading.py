"""What one gate makes of its evidence, before anything is decided from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """What a test says at a level: whether it ``fails``, and whether it is ``good`` enough to pass.

    Both can be false: then the evidence is not strong enough for either.
    """

    fails: bool
    good: bool
    words: str
    numbers: dict[str, float] = field(default_factory=dict)


def never(level: float) -> Finding:
    """The test of a gate without evidence, which is not to be called."""
    raise AssertionError(f"a gate without evidence was tested at level {level}")


@dataclass(frozen=True, slots=True)
class Reading:
    """The evidence of one gate.

    Attributes:
        evidence: The counts that the test rests on. The same counts are the same look.
        missing: Why there can be no verdict; null when there can.
        test: The test at a level for false failures.
        figures: More numbers for people.
    """

    evidence: dict[str, float]
    missing: str | None = None
    test: Callable[[float], Finding] = never
    figures: dict[str, float] = field(default_factory=dict)


def percent(share: float) -> str:
    """A share for people: ``11.2 %``."""
    return f"{100.0 * share:.1f} %"


def limit_percent(share: float) -> str:
    """A limit for people: ``90 %``."""
    return f"{100.0 * share:.4g} %"
