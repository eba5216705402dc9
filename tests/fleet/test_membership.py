"""The table of memberships, cell by cell."""

from __future__ import annotations

import itertools

import pytest

from edgepack_fleet.errors import ConflictError, NotAdmittedError, NotFoundError
from edgepack_fleet.membership import TRANSITIONS, Status, Step, asking, next_status, standing

U, P, A, R, V, D = Status
nobody, taken = (NotFoundError, "not-found"), (ConflictError, "id-taken")
rejected, revoked = (NotAdmittedError, "rejected"), (NotAdmittedError, "revoked")
gone, idle = (NotAdmittedError, "decommissioned"), (ConflictError, "nobody-asks")
member, outside = (ConflictError, "is-member"), (ConflictError, "no-member")

TABLE = {
    U: [P, P, A, A, nobody, nobody, nobody, nobody],
    P: [taken, P, A, A, A, R, outside, outside],
    A: [taken, A, taken, A, A, member, V, D],
    R: [P, rejected, A, rejected, A, R, outside, outside],
    V: [P, revoked, A, revoked, idle, idle, V, D],
    D: [P, gone, A, gone, idle, idle, D, D],
}
CELLS = [(status, step, TABLE[status][i]) for status in Status for i, step in enumerate(Step)]


def test_the_table_is_complete():
    assert set(TRANSITIONS) == set(itertools.product(Status, Step))
    assert len(CELLS) == len(TRANSITIONS) == 48


@pytest.mark.parametrize(("status", "step", "expected"), CELLS)
def test_a_cell(status, step, expected):
    if isinstance(expected, Status):
        assert next_status(status, step, "pi-1") is expected
        return
    kind, code = expected
    with pytest.raises(kind) as refused:
        next_status(status, step, "pi-1")
    assert type(refused.value) is kind
    assert refused.value.code == code
    assert "pi-1" in str(refused.value)
    assert "{" not in str(refused.value)


@pytest.mark.parametrize(
    ("device", "wish", "expected"),
    [
        (None, None, U), (None, "pending", P), (None, "rejected", R),
        ("accepted", None, A), ("accepted", "accepted", A), ("accepted", "pending", A),
        ("accepted", "rejected", A), ("revoked", None, V), ("revoked", "accepted", V),
        ("revoked", "pending", P), ("revoked", "rejected", R),
        ("decommissioned", None, D), ("decommissioned", "accepted", D),
        ("decommissioned", "pending", P),
    ],
)  # fmt: skip
def test_what_an_id_is(device, wish, expected):
    assert standing(device, wish) is expected


def test_how_somebody_asks():
    steps = {asking(admitted=a, again=b) for a in (True, False) for b in (True, False)}
    assert steps == {Step.ASK, Step.ASK_AGAIN, Step.ADMIT, Step.ADMIT_AGAIN}
    assert asking(admitted=False, again=True) is Step.ASK_AGAIN
    assert asking(admitted=True, again=False) is Step.ADMIT


def test_nothing_brings_a_key_back_that_was_revoked():
    """By no single step that its holder can take does an ended membership become one again."""
    for status in (V, D):
        for step in (Step.ASK_AGAIN, Step.ADMIT_AGAIN):
            with pytest.raises(NotAdmittedError):
                next_status(status, step, "pi-1")
