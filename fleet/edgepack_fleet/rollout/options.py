"""From what a user asks for to what a rollout is planned with: every value parsed, none assumed.

A threshold that cannot be read stops the plan. Nothing is left to be parsed when it matters.
"""

from __future__ import annotations

import math

import msgspec

from edgepack_contract.states import UpdateState
from edgepack_fleet.errors import InvalidRequestError
from edgepack_fleet.rollout.model import (
    IN_FLIGHT,
    GateAction,
    GateName,
    GateOverride,
    GateSpec,
    RolloutOptions,
)

PHASE_TIMEOUTS = {
    UpdateState.DOWNLOADING: 3600.0,
    UpdateState.VERIFIED: 900.0,
    UpdateState.PROBING: 900.0,
    UpdateState.ACTIVATING: 600.0,
}
"""Seconds after which a device that reports no progress is given up."""

PROBATION_MARGIN_SECONDS = 3600.0
"""A probation pauses while the device is not used; beyond this on top of it, it has timed out."""

AGREEMENT_SHARE = 0.1
"""Of the rollout's alpha, what the agreement gate may spend: 0.001 by default, hence the 99.9 %."""

PASS_LEVEL = 0.01
"""Agreement passes when its one-sided 99 % lower bound is over the limit."""

_DEFAULTS: dict[GateName, tuple[float, int, GateAction]] = {
    # a share of devices; the minimum is the devices that must have been offered
    GateName.INSTALL: (0.02, 1, GateAction.ROLLBACK),
    GateName.FALLBACK: (0.02, 1, GateAction.ROLLBACK),
    # a share of pairs
    GateName.AGREEMENT: (0.90, 200, GateAction.ROLLBACK),
    # a population stability index; rows of each arm
    GateName.CLASS_MIX: (0.25, 150, GateAction.ROLLBACK),
    GateName.CONFIDENCE: (0.25, 150, GateAction.ROLLBACK),
    # new less old, as shares of requests; requests of each arm
    GateName.ERRORS: (0.005, 500, GateAction.ROLLBACK),
    GateName.NON_FINITE: (0.0, 500, GateAction.ROLLBACK),
    GateName.LATENCY: (0.02, 1900, GateAction.ROLLBACK),
    GateName.INPUT_DRIFT: (0.0, 1, GateAction.REPORT),
    GateName.ACCURACY: (-0.01, 1, GateAction.REPORT),
}

_SPENDING = (
    GateName.INSTALL,
    GateName.FALLBACK,
    GateName.CLASS_MIX,
    GateName.CONFIDENCE,
    GateName.ERRORS,
    GateName.LATENCY,
)
"""Gates that share what agreement leaves of alpha. A non-finite output is a fact, not a test."""


def check_options(options: RolloutOptions) -> RolloutOptions:
    """Return the options when every value is in range.

    Raises:
        InvalidRequestError: One is not; the message names it.
    """
    plain = msgspec.to_builtins(options)
    numbers = [value for value in plain.values() if isinstance(value, float)]
    numbers += [*plain["phase_timeouts"].values()]
    if not all(math.isfinite(value) for value in numbers):
        raise InvalidRequestError("an option is not a finite number", code="bad-options")
    try:
        checked = msgspec.convert(plain, RolloutOptions)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(
            f"a rollout option is out of range: {error}", code="bad-options"
        ) from error
    strange = set(checked.phase_timeouts) - IN_FLIGHT
    if strange:
        raise InvalidRequestError(
            f"phase_timeouts names {', '.join(sorted(strange))}, which is no phase of an update; "
            f"use {', '.join(sorted(IN_FLIGHT))}",
            code="bad-options",
        )
    return checked


def plan_gates(options: RolloutOptions) -> list[GateSpec]:
    """The gates of a rollout, with their limits and with what each may spend of alpha.

    Raises:
        InvalidRequestError: A limit is not a number in range.
    """
    rest = options.alpha * (1.0 - AGREEMENT_SHARE) / len(_SPENDING)
    alphas = {GateName.AGREEMENT: options.alpha * AGREEMENT_SHARE}
    alphas |= dict.fromkeys(_SPENDING, rest)
    specs = []
    for gate, (limit, minimum, action) in _DEFAULTS.items():
        override = options.gates.get(gate, GateOverride())
        if override.enabled:
            specs.append(
                GateSpec(
                    gate=gate,
                    limit=limit if override.limit is None else _limit(gate, override.limit),
                    minimum=override.minimum or minimum,
                    alpha=alphas.get(gate, 0.0),
                    action=_action(gate, override.action or action),
                )
            )
    return specs


def deadline_seconds(options: RolloutOptions, state: UpdateState) -> float:
    """After how many seconds a device in a state of :data:`IN_FLIGHT` is given up."""
    if state in options.phase_timeouts:
        return options.phase_timeouts[state]
    if state is UpdateState.OFFERED:
        return options.offer_deadline_seconds
    if state is UpdateState.PROBATION:
        return options.probation_seconds + PROBATION_MARGIN_SECONDS
    return PHASE_TIMEOUTS[state]


def _limit(gate: GateName, limit: float) -> float:
    highest = 100.0 if gate in (GateName.CLASS_MIX, GateName.CONFIDENCE) else 1.0
    if not (math.isfinite(limit) and -1.0 <= limit <= highest):
        raise InvalidRequestError(
            f"the limit {limit} of gate {gate} is not a number between -1 and {highest:g}; "
            "shares are written as 0.02, not as 2",
            code="bad-gate-limit",
        )
    return limit


def _action(gate: GateName, action: GateAction) -> GateAction:
    if gate in (GateName.INPUT_DRIFT, GateName.ACCURACY) and action is not GateAction.REPORT:
        raise InvalidRequestError(
            f"gate {gate} reports and cannot {action}: changed inputs are not the model's fault, "
            "and accuracy has no labels to go by",
            code="bad-gate-action",
        )
    return action
