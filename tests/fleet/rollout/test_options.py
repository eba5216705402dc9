from __future__ import annotations

import math

import msgspec
import pytest

from edgepack_contract.states import UpdateState
from edgepack_fleet.errors import InvalidRequestError
from edgepack_fleet.rollout.model import (
    GateAction,
    GateName,
    GateOverride,
    RolloutOptions,
)
from edgepack_fleet.rollout.options import check_options, deadline_seconds, plan_gates


def test_the_gates_together_may_spend_alpha_and_no_more():
    specs = plan_gates(RolloutOptions())
    assert sum(spec.alpha for spec in specs) == pytest.approx(0.01)
    agreement = next(spec for spec in specs if spec.gate is GateName.AGREEMENT)
    assert (agreement.alpha, agreement.limit, agreement.minimum) == (0.001, 0.90, 200)


def test_overrides_change_what_they_name():
    overrides = {
        GateName.ERRORS: GateOverride(limit=0.02, minimum=50, action=GateAction.PAUSE),
        GateName.LATENCY: GateOverride(enabled=False),
    }
    specs = {spec.gate: spec for spec in plan_gates(RolloutOptions(gates=overrides))}
    assert GateName.LATENCY not in specs
    errors = specs[GateName.ERRORS]
    assert (errors.limit, errors.minimum, errors.action) == (0.02, 50, GateAction.PAUSE)
    assert specs[GateName.CLASS_MIX].limit == 0.25


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf, 2.0, -1.5])
def test_a_limit_that_is_no_share_stops_the_plan(limit: float):
    options = RolloutOptions(gates={GateName.ERRORS: GateOverride(limit=limit)})
    with pytest.raises(InvalidRequestError, match=r"limit .* of gate errors"):
        plan_gates(options)


@pytest.mark.parametrize("gate", [GateName.INPUT_DRIFT, GateName.ACCURACY])
def test_what_only_reports_cannot_be_made_to_roll_back(gate: GateName):
    options = RolloutOptions(gates={gate: GateOverride(action=GateAction.ROLLBACK)})
    with pytest.raises(InvalidRequestError, match="reports and cannot rollback"):
        plan_gates(options)


@pytest.mark.parametrize(
    "change",
    [
        {"soak_seconds": math.nan},
        {"soak_seconds": -1.0},
        {"max_wait_seconds": math.inf},
        {"alpha": 0.0},
        {"alpha": 0.9},
        {"min_reported": 1.5},
        {"max_in_flight": 0},
        {"looks": 0},
        {"stages": []},
        {"unreachable": "maybe"},
        {"phase_timeouts": {UpdateState.DOWNLOADING: math.nan}},
        {"phase_timeouts": {UpdateState.SUCCEEDED: 5.0}},
    ],
)
def test_an_option_out_of_range_stops_the_plan(change: dict[str, object]):
    with pytest.raises(InvalidRequestError):
        check_options(msgspec.structs.replace(RolloutOptions(), **change))


@pytest.mark.parametrize(
    "raw", [b'{"soak_seconds": "soon"}', b'{"gates": {"eror": {}}}', b'{"gates": {"errors": 1}}']
)
def test_what_cannot_be_read_does_not_become_a_default(raw: bytes):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=RolloutOptions)


def test_every_state_under_way_has_a_deadline():
    options = RolloutOptions(phase_timeouts={UpdateState.PROBING: 5.0})
    assert deadline_seconds(options, UpdateState.PROBING) == 5.0
    assert deadline_seconds(options, UpdateState.OFFERED) == options.offer_deadline_seconds
    assert deadline_seconds(options, UpdateState.PROBATION) > options.probation_seconds
    assert deadline_seconds(options, UpdateState.DOWNLOADING) > 0
