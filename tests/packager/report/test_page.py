"""``report.html``: whole, escaped, without scripts, and saying everything in words."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import msgspec
import pytest
from tests.packager.report.report_samples import (
    EVIL,
    candidate,
    candidates,
    failed_gate,
    report,
    target,
)

from edgepack_packager.report.page import to_html


class Seen(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    return to_html(report())


@pytest.fixture(scope="module")
def seen(page):
    return Seen(page)


def test_the_page_has_no_script_and_loads_nothing(seen):
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(seen.tags)
    names = {name for name, _ in seen.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not {"style", "href", "src"} & names


def test_names_out_of_models_are_text_wherever_they_stand(page, seen):
    assert b"<script>alert" not in page
    assert seen.text.count(EVIL) >= 4


def test_the_policy_allows_this_style_and_no_more(page, seen):
    style = re.search(rb"<style>(.*?)</style>", page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    (policy,) = [value for name, value in seen.attributes if name == "content" and "src" in value]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")


def test_every_candidate_and_gate_is_there_in_words(seen):
    for item in candidates():
        assert item.name in seen.text
        assert item.reason in seen.text
    for words in ("ok", "failed", "not measured", "accuracy loss 0.2 is over 0.01"):
        assert words in seen.text


def test_the_table_names_the_chosen_candidate_and_what_it_lacks():
    alone = candidate(chosen=True, memory_bytes=None)
    plan = {"precision": "fp32", "weights": "int8"}
    other = candidate("fp32", latency_ms=None, memory_bytes=None, plan=plan)
    page = to_html(report(target(alone, other, measured_on=None, measured_here=False)))
    assert b"<strong>\xe2\x97\x86 int8-static</strong>" in page
    table = Seen(page).text.partition("why")[2].partition("not proven or")[0]
    assert "50 us" in table
    assert table.count("not measured") == 3
    assert "memory" not in table
    assert "weights int8" not in Seen(page).text
    assert b"<strong>\xe2\x97\x86 int8-static</strong>" in to_html(report(target(alone)))


def test_the_header_says_what_ships_and_which_gates_are_open(page, seen):
    assert seen.text.count("digits 1.0.0") >= 1
    assert f"sha256:{'a' * 64}" in seen.text
    assert "int8-static, 29.3 KiB, 0.27 of the size in float; max-latency not measured" in seen.text


def test_there_is_a_picture_for_everything_that_was_measured(seen):
    titles = [value for name, value in seen.attributes if name == "aria-label"]
    for words in ("size and latency", "size and loss", "lost against the source", "error by layer",
                  "by slice", "changed label"):  # fmt: skip
        assert any(words in title for title in titles), words


def test_nothing_measured_is_a_page_without_pictures():
    bare = candidate(
        "fp32", latency_ms=None, loss=None, metrics=(), slices=(), worst=(), confusions=(),
        layers=(), gates=(), memory_bytes=None, chosen=True, size_ratio=1.0,
    )  # fmt: skip
    seen = Seen(to_html(report(target(bare), warnings=())))
    assert "svg" not in seen.tags
    assert "no gate was asked for" in seen.text
    assert "Warnings" not in seen.text


def test_a_target_that_is_not_this_machine_says_so():
    tried = tuple(msgspec.structs.replace(item, latency_ms=None) for item in candidates())
    other = target(*tried, measured_here=False, measured_on=None)
    text = Seen(to_html(report(other))).text
    assert "latency and memory are not measured" in text
    assert "p95" not in text
    assert "p95" in Seen(to_html(report())).text


def test_an_error_that_is_not_finite_is_shown_as_such():
    loss = msgspec.structs.replace(candidates()[0].loss, value=None, high=None)
    odd = candidate("fp32", loss=loss, chosen=True)
    assert "∞" in Seen(to_html(report(target(odd)))).text


def test_many_classes_are_a_list_and_no_map():
    pairs = tuple(
        msgspec.structs.replace(candidate().confusions[0], source=str(n), candidate=str(n + 1))
        for n in range(40)
    )
    seen = Seen(to_html(report(target(candidate(confusions=pairs, chosen=True)))))
    assert not [v for n, v in seen.attributes if n == "aria-label" and "changed label" in v]
    assert "Changed labels (rows: 160)" in seen.text


def test_the_same_report_gives_the_same_bytes():
    assert to_html(report()) == to_html(report())


def test_the_failed_gate_of_an_unchosen_candidate_is_drawn_as_outside(seen):
    assert failed_gate().words in seen.text
    assert "mark outside" in {value for name, value in seen.attributes if name == "class"}
