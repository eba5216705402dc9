"""How often the gates are wrong, on simulated fleets with the demo's times and default gates.

A *miss* is a bad bundle that gets past the canary, a *false rollback* a good one that is sent back.
The counts are printed; ``EDGEPACK_REPLAYS=200 pytest -s`` is the run of docs/gates.md.
"""

from __future__ import annotations

import os
from collections import Counter

import msgspec
import pytest
from rollout_simulation import BAD, DEMO, GOOD, Fleet, Model

from edgepack_contract.states import RolloutState, StageState
from edgepack_fleet.rollout.model import Rollout

SEEDS = int(os.environ.get("EDGEPACK_REPLAYS", "50"))
FLAT = Model(agreement=0.15)
"""Wrong, but with the right mix and confidence: only agreement can tell."""


def outcomes(count: int, seeds: int, model: Model, **device: object) -> list[Rollout]:
    return [
        Fleet(count, seed=seed, model=model, history_s=20, **device).start().run()
        for seed in range(seeds)
    ]


def summary(name: str, rollouts: list[Rollout]) -> Counter[str]:
    counted = Counter(rollout.state.value for rollout in rollouts)
    waits = Counter(
        (rollout.rollback_started_ms - rollout.stages[0].opened_ms) // 1000
        for rollout in rollouts
        if rollout.rollback_started_ms is not None
    )
    took = ", ".join(f"{count} after {seconds} s" for seconds, count in sorted(waits.items()))
    print(f"\n{name}: {dict(counted)}" + (f"; rolled back {took}" if took else ""))
    return counted


@pytest.mark.parametrize("model", [BAD, FLAT], ids=["collapsed", "flat"])
def test_no_bad_bundle_gets_past_the_canary(model: Model):
    rollouts = outcomes(5, SEEDS, model)
    summary("bad bundle, 5 devices", rollouts)
    misses = [rollout for rollout in rollouts if rollout.stages[1].state is not StageState.WAITING]
    print(f"misses: {len(misses)} of {SEEDS}")
    assert not misses
    assert all(rollout.state is RolloutState.ROLLED_BACK for rollout in rollouts)
    latest = max(r.rollback_started_ms - r.stages[0].opened_ms for r in rollouts)
    assert latest <= 12_000


def test_hardly_a_good_bundle_is_sent_back():
    rollouts = outcomes(5, SEEDS, GOOD)
    counted = summary("good bundle, 5 devices", rollouts)
    false = SEEDS - counted["completed"]
    print(f"false rollbacks and pauses: {false} of {SEEDS}")
    assert false <= 0.01 * SEEDS


@pytest.mark.parametrize(
    ("devices", "stages", "seeds"), [(1, ["100%"], 100), (12, ["100%"], 25)], ids=["one", "twelve"]
)
def test_the_same_model_with_bursty_traffic_is_not_sent_back(
    devices: int, stages: list[str], seeds: int
):
    """A/A: the new bundle is the old one; inputs come in bursts of ten of the same class."""
    options = msgspec.structs.replace(DEMO, stages=stages)
    same = Model(agreement=1.0)
    rollouts = outcomes(devices, seeds, same, burst=0.9, options=options)
    counted = summary(f"the same model, bursts, {devices} devices", rollouts)
    assert counted["rolled_back"] <= 0.01 * seeds


@pytest.mark.parametrize(
    "model",
    [
        Model(agreement=0.80),
        Model(agreement=0.97, error_rate=0.12),
        Model(agreement=0.97, sure=1.0),
    ],
    ids=["agreement 80 %", "errors 12 points", "unsure"],
)
@pytest.mark.parametrize("devices", [1, 6])
def test_worse_models_are_found(model: Model, devices: int):
    options = msgspec.structs.replace(DEMO, stages=["100%"])
    rollouts = outcomes(devices, 20, model, options=options)
    counted = summary(f"{model}, {devices} devices", rollouts)
    assert counted["completed"] == 0
    assert counted["rolled_back"] >= 18
