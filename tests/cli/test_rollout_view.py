"""A rollout as text."""

from __future__ import annotations

import msgspec
import pytest

from edgepack_cli.rollout_view import MARKS, render_plan, render_rollout
from edgepack_contract.states import StageState, UpdateState, Verdict
from edgepack_fleet.rollout.model import (
    DeviceUpdate,
    GateName,
    GateResult,
    Rollout,
    RolloutOptions,
    Stage,
)


def gate(name, verdict, words):
    return GateResult(gate=name, verdict=verdict, words=words)


FIRST = Stage(
    index=0, target="1", devices=["pi-1"], state=StageState.FAILED,
    gates=[
        gate(GateName.INSTALL, Verdict.PASS, "0 of 1 devices could not install"),
        gate(GateName.AGREEMENT, Verdict.FAIL, "agreement with 1.0.0 is 11.2 % of 214 pairs"),
        gate(GateName.ERRORS, Verdict.INCONCLUSIVE, "214 of 500 requests so far"),
        gate(GateName.ACCURACY, Verdict.NOT_APPLICABLE, "no ground truth is posted"),
    ],
)  # fmt: skip
SECOND = Stage(
    index=1, target="100%", devices=["pi-2", "pi-3", "pi-4"],
    gates=[gate(GateName.INSTALL, Verdict.INCONCLUSIVE, "0 of 3 devices could not install")],
)  # fmt: skip
UPDATES = {
    "pi-1": DeviceUpdate(stage=0, state=UpdateState.SUCCEEDED),
    "pi-2": DeviceUpdate(stage=1, state=UpdateState.CANCELLED),
    "pi-3": DeviceUpdate(stage=1, state=UpdateState.UNREACHABLE),
    "pi-4": DeviceUpdate(stage=1, state=UpdateState.CANCELLED),
}
ROLLOUT = Rollout(
    id="digits-1-1-0-7f3a", tenant="default", slot="digits", group="gateways", bundle="digits",
    version="1.1.0", digest=f"sha256:{'1' * 64}", state="rolled_back",
    reason="stage 1 failed: agreement", created_ms=0, options=RolloutOptions(), gates=[],
    stages=[FIRST, SECOND], updates=UPDATES,
)  # fmt: skip
GOLDEN = """\
digits-1-1-0-7f3a: digits 1.1.0 to gateways is rolled_back
  stage 1 failed: agreement
  ✘ stage 1 (1) failed: 1 succeeded
    ✔ install    0 of 1 devices could not install
    ✘ agreement  agreement with 1.0.0 is 11.2 % of 214 pairs
    ? errors     214 of 500 requests so far
    - accuracy   no ground truth is posted
  · stage 2 (100%) waiting: 2 cancelled, 1 unreachable"""


def text(**changes):
    return render_rollout(msgspec.to_builtins(msgspec.structs.replace(ROLLOUT, **changes)))


def test_the_golden_text():
    assert text() == GOLDEN


def test_without_a_reason_there_is_no_line_for_it():
    assert text(reason="").splitlines()[1] == GOLDEN.splitlines()[2]


@pytest.mark.parametrize("state", [one for one in StageState if one != StageState.WAITING])
def test_gates_are_shown_from_when_a_stage_opens(state):
    lines = text(stages=[msgspec.structs.replace(SECOND, state=state)]).splitlines()
    assert state.value in lines[2]
    assert lines[3] == "    ? install  0 of 3 devices could not install"


def test_every_verdict_has_a_mark():
    assert set(Verdict) <= set(MARKS)


def test_a_plan_names_who_is_left_out_and_what_cannot_be_undone():
    plan = {
        "rollout": msgspec.to_builtins(ROLLOUT),
        "incompatible": {"pi-9": "built for arm64"},
        "unheard": [f"pi-{number}" for number in range(10)],
        "warnings": ["1 device (pi-1) cannot be rolled back"],
    }
    lines = render_plan(plan).splitlines()
    assert "  stage 2 (100%): pi-2, pi-3, pi-4" in lines
    assert "  gate accuracy does not apply: no ground truth is posted" in lines
    assert "  left out: pi-9: built for arm64" in lines
    assert lines[-2].endswith("pi-7 and 2 more")
    assert lines[-1] == "  warning: 1 device (pi-1) cannot be rolled back"
