"""What both security gates share: who may start, and what is said then."""

from __future__ import annotations

import math

import pytest

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import (
    FileFacts,
    Rule,
    Violation,
    Waiver,
    admit,
    day,
    is_local_url,
    is_safe_url,
)
from edgepack_contract.gate_facts import file_facts, tls_facts

OPEN = Violation("http.host", "it is open", "close it", waivable=True)
BROKEN = Violation("http.tls_key", "it is broken", "mend it", waivable=False)


def test_nothing_to_say_lets_it_start():
    assert admit([], None) is None
    assert admit([], "a reason that nobody needs") is None


@pytest.mark.parametrize(
    ("found", "reason"),
    [([OPEN], None), ([OPEN], ""), ([OPEN], " \n"), ([BROKEN], "lab"), ([OPEN, BROKEN], "lab")],
)
def test_refused_with_a_line_for_each(found, reason):
    with pytest.raises(ConfigError, match="refusing to start") as caught:
        admit(found, reason)
    assert caught.value.code == "insecure"
    assert str(caught.value).splitlines()[1:] == [f"  {one}" for one in found]


def test_a_reason_waives_what_can_be():
    assert admit([OPEN, OPEN], " lab ") == Waiver("lab", (OPEN, OPEN))
    assert Waiver("lab", (BROKEN, OPEN, OPEN)).settings == ["http.host", "http.tls_key"]


def test_a_rule_fills_its_templates():
    rule = Rule[int]("a.b", lambda number: number > 1, "{n} is too many", "set {n} to 1")
    assert str(rule.violation({"n": "2"})) == "a.b: 2 is too many; set 2 to 1"
    assert rule.violation({"n": "2"}, key="--a").key == "--a"


@pytest.mark.parametrize(
    ("url", "local", "safe"),
    [
        ("http://127.0.0.1:8080", True, True),
        ("http://[::1]/x", True, True),
        ("https://fleet.example", False, True),
        ("http://fleet.example", False, False),
        ("http://127.0.0.1.example", False, False),
        ("ftp://127.0.0.1", True, False),
        ("https://", False, False),
        ("https://[", False, False),
        ("", False, False),
    ],
)
def test_where_a_url_leads(url, local, safe):
    assert (is_local_url(url), is_safe_url(url)) == (local, safe)


@pytest.mark.parametrize(
    ("mode", "of_root", "is_open", "is_told"),
    [
        (0o600, False, False, False),
        (0o640, False, True, True),
        (0o640, True, True, False),
        (0o660, True, True, True),
        (0o604, True, True, True),
        (None, False, False, False),
    ],
)
def test_what_others_may_do_with_a_file(mode, of_root, is_open, is_told):
    file = FileFacts("/f", mode, of_root)
    assert (file.is_open(), file.is_told()) == (is_open, is_told)


def test_files_are_looked_at_and_never_raise(tmp_path):
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0o640)
    assert file_facts(str(path)).mode == 0o640
    assert file_facts(str(tmp_path / "none")).mode is None
    assert tls_facts(str(path), None) is None
    found = tls_facts(str(path), str(path))
    assert found is not None
    assert "are not a certificate and its key" in (found.problem or "")


def test_a_day_that_no_calendar_has():
    assert day(0.0) == "1970-01-01"
    assert day(math.inf) == day(-1e30) == "an unknown day"
