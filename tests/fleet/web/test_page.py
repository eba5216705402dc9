"""The page: a few plain files that need no internet and show text as text."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from chromium import chromium
from fleet_http import open_fleet, served
from fleet_scene import AGREEMENT, canary_failed, change_rollout, load, report

from edgepack_contract.messages import CandidateMode, CandidateReported
from edgepack_contract.states import Phase, RolloutState
from edgepack_fleet.tokens import new_secret

STATIC = files("edgepack_fleet") / "web" / "static"
HOSTILE = '"><svg onload=document.title="owned"><script>document.title="owned"</script>'


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def text_of(name):
    return (STATIC / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/app.js", "text/javascript"),
     ("/login.js", "text/javascript"), ("/style.css", "text/css"),
     ("/icon.svg", "image/svg+xml")],
)  # fmt: skip
def test_the_files_are_served_to_anyone_under_a_strict_policy(fleet, path, kind):
    answer = fleet.client().get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(kind)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    again = fleet.client().get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    page = text_of("index.html")
    assert re.findall(r"<script(?![^>]*src=)", page) == []
    assert "<style" not in page
    assert re.findall(r"\son\w+=|\sstyle=", page) == []
    for name in ("index.html", "app.js", "login.js", "style.css"):
        assert re.findall(r"https?://|//[a-z]", text_of(name)) == []


def test_nothing_is_set_as_markup():
    script = text_of("app.js") + text_of("login.js")
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert dangerous not in script


@pytest.mark.foreign("chromium")
def test_a_browser_shows_devices_and_the_rollout_and_follows_them(fleet):
    rollout_id = canary_failed(fleet)
    with served(fleet) as url, chromium() as browser:
        browser.open(f"{url}/#token={fleet.tokens['viewer']}")
        browser.wait_for("document.querySelectorAll('#devices tbody tr').length === 5")
        browser.wait_for("document.querySelectorAll('ol.events li').length === 2")
        text = browser.evaluate("document.body.innerText")
        for words in ("digits 1.1.0 to all", "rolling back", AGREEMENT, "5 of 5 online",
                      "Stage 1 of 2 (1) failed", "4 pending", "1 going back",
                      "no ground truth was posted",
                      "operator started the rollout"):  # fmt: skip
            assert words in text
        assert browser.evaluate("location.href") == f"{url}/"
        assert browser.evaluate("document.querySelectorAll('article button').length") == 0

        change_rollout(fleet, rollout_id, state=RolloutState.ROLLED_BACK, reason="all are back")
        browser.wait_for("document.body.innerText.includes('all are back')")
        beside = CandidateReported(
            phase=Phase.SUCCEEDED, running=None, version="9.9.10", wanted=None,
            mode=CandidateMode.SPLIT, share=0.07,
        )  # fmt: skip
        report(fleet, "pi-1", f"sha256:{'7' * 64}", "9.9.9", candidate=beside)
        browser.wait_for("document.body.innerText.includes('9.9.9')")
        browser.wait_for("document.body.innerText.includes('beside it 9.9.10, split 7 %')")
        assert browser.messages == []


@pytest.mark.foreign("chromium")
def test_a_browser_shows_hostile_text_as_text(fleet):
    rollout_id = canary_failed(fleet)
    report(fleet, "pi-1", f"sha256:{'7' * 64}", HOSTILE, words=HOSTILE, phase=Phase.FAILED)
    change_rollout(fleet, rollout_id, reason=HOSTILE)
    with served(fleet) as url, chromium() as browser:
        browser.open(f"{url}/#token={fleet.tokens['viewer']}")
        browser.wait_for("document.body.innerText.split('onload=').length === 4")
        assert browser.evaluate("document.querySelectorAll('svg, main script').length") == 0
        assert browser.evaluate("document.title") == "edgepack fleet"
        assert browser.messages == []


@pytest.mark.foreign("chromium")
def test_an_operator_steers_from_the_browser(fleet):
    rollout_id = canary_failed(fleet)
    change_rollout(fleet, rollout_id, state=RolloutState.RUNNING, reason="")
    with served(fleet) as url, chromium() as browser:
        browser.open(f"{url}/#token={fleet.tokens['operator']}")
        browser.wait_for(f"document.getElementById('pause-{rollout_id}') !== null")
        browser.evaluate(f"document.getElementById('pause-{rollout_id}').click()")
        browser.wait_for("document.body.innerText.includes('paused by operator')")
        assert load(fleet, rollout_id).state is RolloutState.PAUSED
        browser.evaluate("window.confirm = () => true")
        browser.evaluate(f"document.getElementById('rollback-{rollout_id}').click()")
        browser.wait_for("document.body.innerText.includes('rolled back by operator')")
        assert browser.messages == []


@pytest.mark.foreign("chromium")
def test_a_browser_asks_for_the_token_and_says_when_it_is_wrong(fleet):
    with served(fleet) as url, chromium() as browser:
        browser.open(f"{url}/")
        browser.wait_for("document.getElementById('login')?.hidden === false")
        enter = (
            "document.getElementById('token').value = '{}';"
            "document.getElementById('token-form').requestSubmit()"
        )
        browser.evaluate(enter.format("epa_wrong"))
        browser.wait_for("document.body.innerText.includes('not a whole token')")
        browser.evaluate(enter.format(new_secret("epa_")))
        browser.wait_for("document.body.innerText.includes('unknown, revoked or expired')")
        browser.evaluate(enter.format(fleet.tokens["viewer"]))
        browser.wait_for("document.getElementById('link').textContent === 'live'")
        browser.evaluate("location.reload()")
        browser.wait_for("document.getElementById('link')?.textContent === 'live'")


@pytest.mark.foreign("chromium")
def test_the_page_fits_a_phone_in_dark_and_light(fleet):
    canary_failed(fleet)
    with served(fleet) as url, chromium() as browser:
        grounds = set()
        for dark in (False, True):
            browser.resize(360, 740, dark=dark)
            browser.open(f"{url}/#token={fleet.tokens['viewer']}")
            browser.wait_for("document.querySelectorAll('#devices tbody tr').length === 5")
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert browser.evaluate(wide) == 0
            grounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
