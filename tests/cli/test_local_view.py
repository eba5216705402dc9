"""What is said of a slot at the device itself."""

from __future__ import annotations

import pytest

from edgepack_cli.local_view import slots_table
from edgepack_contract.messages import CandidateMode, CandidateReported
from edgepack_contract.states import Phase
from edgepack_runtime.local.view import SlotView


@pytest.mark.parametrize(
    ("version", "told"),
    [("1.1.0", "1.1.0 split 7 % probation"), (None, "777777777777 split 7 % probation")],
    ids=["loaded", "wanted"],
)
def test_a_candidate_is_told_with_its_share_and_state(version, told):
    candidate = CandidateReported(
        phase=Phase.PROBATION, running=None, version=version, wanted=f"sha256:{'7' * 64}",
        mode=CandidateMode.SPLIT, share=0.07,
    )  # fmt: skip
    slot = SlotView(name="tiny", phase="succeeded", candidate=candidate)
    assert slots_table([slot]).splitlines()[-1].endswith(told)
