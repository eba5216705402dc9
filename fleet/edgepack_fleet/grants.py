"""What somebody may do: a role, and the bundles and groups it is limited to. Pure decisions.

Limits are shell patterns over names, with ``*`` for any characters. They narrow what changes
something for devices (pushing a bundle, starting and steering rollouts, making the groups that
rollouts go to); who may look may look at everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from edgepack_fleet.errors import InvalidRequestError

MAX_PATTERNS = 64
_PATTERN = re.compile(r"\A[a-z0-9*-]{1,63}\Z")


class Role(StrEnum):
    """What a route asks for and what a caller has; each includes the ones before it."""

    PUBLIC = "public"
    DEVICE = "device"
    VIEWER = "viewer"
    OPERATOR = "operator"
    PUBLISHER = "publisher"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """A larger rank may do more."""
        return list(Role).index(self)


GRANTED_ROLES = (Role.VIEWER, Role.OPERATOR, Role.PUBLISHER, Role.ADMIN)
"""What tokens and people can have; devices have credentials of their own."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Patterns of bundle names and of group names; one that matches is enough."""

    bundles: tuple[str, ...] = ("*",)
    groups: tuple[str, ...] = ("*",)

    def __str__(self) -> str:
        """In words: ``bundles churn-*; groups gateways``."""
        return f"bundles {', '.join(self.bundles)}; groups {', '.join(self.groups)}"


EVERYTHING = Scope()


def make_scope(bundles: Sequence[str], groups: Sequence[str]) -> Scope:
    """The scope of these patterns.

    Raises:
        InvalidRequestError: None, too many, or one that is not a pattern of names.
    """
    return Scope(_checked("bundles", bundles), _checked("groups", groups))


def allows(scope: Scope, *, bundle: str | None = None, group: str | None = None) -> bool:
    """Whether ``scope`` reaches this bundle and this group; None asks for nothing of its kind."""
    return _reaches(scope.bundles, bundle) and _reaches(scope.groups, group)


def covers(mine: Scope, theirs: Scope) -> bool:
    """Whether ``theirs`` reaches nothing that ``mine`` does not.

    A pattern is covered by one single pattern of ``mine``, or counts as not covered: two patterns
    that only together cover a third are not looked for.
    """
    pairs = ((mine.bundles, theirs.bundles), (mine.groups, theirs.groups))
    return all(any(_matches(one, other) for one in have) for have, want in pairs for other in want)


def _reaches(patterns: Sequence[str], name: str | None) -> bool:
    return name is None or any(_matches(pattern, name) for pattern in patterns)


def _matches(pattern: str, text: str) -> bool:
    # of a text that is itself a pattern, a `*` is a character that only a `*` of ours takes: what
    # matches is covered. No regular expression: `*a*a*a*` must not take exponential time.
    head, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, tail = rest
    if len(text) < len(head) + len(tail) or not (text.startswith(head) and text.endswith(tail)):
        return False
    left = text[len(head) : len(text) - len(tail)]
    for part in middle:
        _, found, left = left.partition(part) if part else ("", "*", left)
        if not found:
            return False
    return True


def _checked(what: str, patterns: Sequence[str]) -> tuple[str, ...]:
    if not 1 <= len(patterns) <= MAX_PATTERNS:
        raise InvalidRequestError(
            f"{what}: give 1 to {MAX_PATTERNS} patterns; '*' alone is no limit"
        )
    for pattern in patterns:
        if _PATTERN.match(pattern) is None:
            raise InvalidRequestError(
                f"{what}: {pattern[:80]!r} is no pattern of names; use a-z, 0-9, '-' and '*'"
            )
    return tuple(sorted(set(patterns)))
