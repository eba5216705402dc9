"""The page says for as long as it is so that the service was started although it is insecure."""

from __future__ import annotations

import dataclasses

import pytest
from chromium import chromium
from fleet_http import open_fleet, served

from edgepack_contract.gate import Violation, Waiver

REASON = "<b>until Monday</b>"


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


@pytest.mark.foreign("chromium")
def test_the_page_shows_why_the_service_is_insecure_and_only_then(fleet):
    shown = "document.getElementById('insecure')?.hidden === false"
    live = "document.getElementById('link').textContent === 'live'"
    with served(fleet) as url, chromium() as browser:
        browser.open(f"{url}/#token={fleet.tokens['viewer']}")
        browser.wait_for(live)
        assert not browser.evaluate(shown)
        waiver = Waiver(REASON, (Violation("http.host", "w", "f", waivable=True),))
        fleet.app.state.context = dataclasses.replace(fleet.context, waiver=waiver)
        browser.evaluate("location.reload()")
        browser.wait_for(shown)
        words = browser.evaluate("document.getElementById('insecure').textContent")
        assert words.startswith("This service is insecure (http.host).")
        assert words.endswith(REASON)
        assert browser.messages == []
