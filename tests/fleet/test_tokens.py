"""The form of secrets, and what tokens and people may be called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.db.database import Database
from edgepack_fleet.errors import ConflictError, InvalidRequestError
from edgepack_fleet.grants import EVERYTHING, Role
from edgepack_fleet.people import add_user
from edgepack_fleet.tokens import create_token, is_whole, new_secret

GOOD = new_secret("epa_")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def test_a_secret_is_long_different_and_whole():
    assert len(GOOD) == 53
    assert GOOD.startswith("epa_")
    assert is_whole(GOOD, "epa_")
    assert len({new_secret("epa_") for _ in range(100)}) == 100
    assert not is_whole(GOOD, "epl_")
    assert not is_whole(new_secret("epl_"), "epa_")


@given(st.integers(4, 52), st.sampled_from(ALPHABET))
def test_one_mistyped_character_is_noticed(at, other):
    changed = GOOD[:at] + other + GOOD[at + 1 :]
    assert is_whole(changed, "epa_") is (changed == GOOD)


@given(st.integers(0, 51))
def test_two_swapped_characters_are_noticed(at):
    changed = GOOD[:at] + GOOD[at + 1] + GOOD[at] + GOOD[at + 2 :]
    assert is_whole(changed, "epa_") is (changed == GOOD)


@given(st.text())
def test_anything_else_is_not_whole(text):
    assert not is_whole(text, "epa_")
    assert not is_whole("epa_" + text, "epa_")
    assert not is_whole(GOOD + text, "epa_") or text == ""


@pytest.fixture
def session(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    with database.write() as session:
        yield session
    database.close()


def test_no_two_actors_have_one_name(session):
    create_token(session, name="ci", role=Role.VIEWER, now_ms=0)
    add_user(session, name="anna", role=Role.VIEWER, scope=EVERYTHING, now_ms=0)
    with pytest.raises(ConflictError, match="a token"):
        add_user(session, name="ci", role=Role.VIEWER, scope=EVERYTHING, now_ms=0)
    with pytest.raises(ConflictError, match="a person"):
        create_token(session, name="anna", role=Role.VIEWER, now_ms=0)
    with pytest.raises(ConflictError, match="reset anna"):
        add_user(session, name="anna", role=Role.VIEWER, scope=EVERYTHING, now_ms=0)


@pytest.mark.parametrize(
    "name", ["", "Anna", "local", "fleet", "anonymous", "device:pi-1", "a" * 64]
)
def test_names_that_records_could_not_tell_apart_are_refused(session, name):
    with pytest.raises(InvalidRequestError):
        add_user(session, name=name, role=Role.VIEWER, scope=EVERYTHING, now_ms=0)
    with pytest.raises(InvalidRequestError):
        create_token(session, name=name, role=Role.VIEWER, now_ms=0)


@pytest.mark.parametrize("role", [Role.PUBLIC, Role.DEVICE])
def test_nobody_is_made_a_device(session, role):
    with pytest.raises(InvalidRequestError, match="roles"):
        add_user(session, name="anna", role=role, scope=EVERYTHING, now_ms=0)
