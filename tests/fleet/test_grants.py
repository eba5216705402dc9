"""Who reaches what: patterns against names, and patterns against patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.errors import InvalidRequestError
from edgepack_fleet.grants import Scope, allows, covers, make_scope

NAMES = st.text("abc-", max_size=6)
PATTERNS = st.text("ab*-", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("pattern", "name", "right"),
    [
        ("*", "churn", True), ("churn", "churn", True), ("churn", "churn-2", False),
        ("churn-*", "churn-2", True), ("churn-*", "churn-", True), ("churn-*", "churn", False),
        ("*-eu", "churn-eu", True), ("*-eu", "churn-eus", False), ("a*a", "a", False),
        ("a*a", "aa", True), ("a*b*c", "axbxc", True), ("a*b*c", "axcxb", False),
        ("*a*a*", "a", False), ("**", "", True),
    ],
)  # fmt: skip
def test_a_star_is_any_characters(pattern, name, right):
    assert allows(Scope(bundles=(pattern,)), bundle=name) is right
    assert allows(Scope(groups=(pattern,)), group=name) is right


def test_both_have_to_be_reached_and_one_pattern_is_enough():
    scope = Scope(bundles=("churn-*", "digits"), groups=("gateways",))
    assert allows(scope, bundle="digits", group="gateways")
    assert allows(scope, bundle="churn-1", group="gateways")
    assert not allows(scope, bundle="digits", group="all")
    assert not allows(scope, bundle="fraud", group="gateways")
    assert allows(scope, bundle="digits")
    assert allows(scope)
    assert not allows(Scope((), ()), bundle="digits")


@pytest.mark.parametrize(
    ("mine", "theirs", "right"),
    [
        ("*", "*", True), ("churn-*", "*", False), ("churn-*", "churn-*", True),
        ("churn-*", "churn-eu-*", True), ("churn-eu-*", "churn-*", False), ("a", "a", True),
        ("a", "*", False), ("*b", "a*b", True), ("a*", "a*b", True), ("a*b", "a*", False),
    ],
)  # fmt: skip
def test_what_one_may_give_is_within_what_one_has(mine, theirs, right):
    assert covers(Scope(bundles=(mine,)), Scope(bundles=(theirs,))) is right
    assert covers(Scope(groups=(mine,)), Scope(groups=(theirs,))) is right


@given(PATTERNS, PATTERNS, NAMES)
def test_what_is_covered_reaches_nothing_more(mine, theirs, name):
    if covers(Scope(bundles=(mine,)), Scope(bundles=(theirs,))):
        reached = allows(Scope(bundles=(theirs,)), bundle=name)
        assert not reached or allows(Scope(bundles=(mine,)), bundle=name)


def test_no_pattern_takes_long():
    assert not allows(Scope(bundles=("*a" * 31,)), bundle="a" * 62 + "b")


@pytest.mark.parametrize(
    "patterns", [[], [""], ["A"], ["a b"], ["?"], ["[a]"], ["é"], ["a" * 64], ["a\n"], ["a"] * 65]
)
def test_what_is_no_pattern_is_refused(patterns):
    with pytest.raises(InvalidRequestError, match="pattern"):
        make_scope(patterns, ["*"])
    with pytest.raises(InvalidRequestError, match="pattern"):
        make_scope(["*"], patterns)
