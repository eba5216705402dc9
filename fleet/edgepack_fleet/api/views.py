"""What the API answers with, where it is not a type of the project already."""

from __future__ import annotations

from typing import Any

import msgspec

from edgepack_contract.oci import evidence_tag
from edgepack_fleet.db.schema import Bundle, Group
from edgepack_fleet.rollout.explain import next_action
from edgepack_fleet.rollout.model import Rollout


class BundleView(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle in a list. ``size`` is in bytes, times are milliseconds since 1970 UTC."""

    name: str
    version: str
    digest: str
    security_version: int
    size: int
    signed_by: str
    pushed_ms: int
    variants: list[dict[str, Any]]


class BundleDetail(BundleView, frozen=True, kw_only=True):
    """One bundle: its tags in the OCI API, and the description of its first variant."""

    tags: dict[str, str]
    evidence: str | None
    description: dict[str, Any]


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """A group: what selects it, and the devices in it now."""

    name: str
    labels: dict[str, str] | None
    devices: list[str] | None
    members: list[str]
    created_ms: int


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: name, role and limits; ``login`` when a browser's cookie says so, not a token.

    ``expires_ms`` is the end of the token; null for a cookie.
    """

    name: str
    role: str
    bundles: tuple[str, ...]
    groups: tuple[str, ...]
    login: bool
    expires_ms: int | None


class LoginWays(msgspec.Struct, frozen=True, kw_only=True):
    """How one can log in: ``passkeys`` is the host name that has them, or null."""

    passkeys: str | None


class PasskeyAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Options for ``navigator.credentials`` in JSON, or null where there are no passkeys.

    ``name`` is the person's whose login code was given.
    """

    name: str | None
    options: dict[str, Any] | None


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    """Who has logged in, and until when; the cookie is in the header."""

    name: str
    role: str
    expires_ms: int


class PersonView(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may log in; ``password`` and ``passkeys`` say how they can."""

    name: str
    role: str
    bundles: tuple[str, ...]
    groups: tuple[str, ...]
    password: bool
    passkeys: int
    created_ms: int
    last_used_ms: int | None


class CodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A one-time login code, and the page's address with the code in it."""

    name: str
    code: str
    url: str
    expires_ms: int


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Where something stands and why, in words with numbers."""

    why: str


class RolloutView(Rollout, frozen=True, kw_only=True):
    """A rollout with what happens ``next``, and when at the latest, in words."""

    next: str


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout would be.

    ``incompatible`` says why a device of the group is left out; ``unheard`` devices are in it
    although they never said what they are. ``warnings`` say what could not be rolled back.
    """

    rollout: Rollout
    incompatible: dict[str, str]
    unheard: list[str]
    warnings: list[str] = []


class StatsRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one device reported of one bundle since a time: totals that add exactly.

    ``n`` requests answered, with ``rows`` rows; ``errors`` not answered; ``windows`` are telemetry
    windows as first closed; ``gaps`` are sequences that the fleet gave up waiting for, which belong
    to a device and not to one bundle: they have a row of their own, without a digest. Quantiles and
    ``classes`` (rows by class in the order of the labels, the last one other) are there on request.
    """

    device: str
    digest: str | None
    n: int = 0
    rows: int = 0
    errors: int = 0
    over_budget: int = 0
    windows: int = 0
    gaps: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    classes: list[int] | None = None


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A token; ``token`` is its secret, and there only in the answer that made it."""

    name: str
    role: str
    bundles: tuple[str, ...]
    groups: tuple[str, ...]
    created_ms: int
    expires_ms: int
    last_used_ms: int | None = None
    token: str | None = None


def bundle_view(row: Bundle) -> BundleView:
    """A bundle as it is listed."""
    return BundleView(**_bundle_fields(row))


def bundle_detail(row: Bundle) -> BundleDetail:
    """A bundle as it is shown."""
    return BundleDetail(
        **_bundle_fields(row),
        tags=row.tags,
        evidence=row.tags.get(evidence_tag(row.digest)),
        description=row.description,
    )


def group_view(group: Group, members: list[str]) -> GroupView:
    """A group with its members."""
    return GroupView(
        name=group.name,
        labels=group.labels,
        devices=group.members,
        members=members,
        created_ms=group.created_ms,
    )


def rollout_view(rollout: Rollout, now_ms: int) -> RolloutView:
    """A rollout as it is shown."""
    fields = {name: getattr(rollout, name) for name in rollout.__struct_fields__}
    return RolloutView(**fields, next=next_action(rollout, now_ms))


def _bundle_fields(row: Bundle) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": row.version,
        "digest": row.digest,
        "security_version": row.security_version,
        "size": row.size,
        "signed_by": row.signed_by,
        "pushed_ms": row.pushed_ms,
        "variants": row.variants,
    }
