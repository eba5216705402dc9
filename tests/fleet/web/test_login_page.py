"""Logging in at the page, in a browser with an authenticator in software."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chromium import chromium
from fleet_http import open_fleet, served

from edgepack_fleet.api.context import Context

pytestmark = pytest.mark.foreign("chromium")

PASSWORD = "correct horse battery"
AUTHENTICATOR = {
    "protocol": "ctap2", "transport": "internal", "hasResidentKey": True,
    "hasUserVerification": True, "isUserVerified": True, "automaticPresenceSimulation": True,
}  # fmt: skip
IS_IN = "document.getElementById('link')?.textContent === 'live'"
IS_OUT = "document.getElementById('login')?.hidden === false"
ASKS = "document.getElementById('choose')?.hidden === false"
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def page(tmp_path):
    """A fleet that is reached as localhost, a browser, and the page's address."""
    with open_fleet(tmp_path) as fleet, served(fleet) as url, chromium() as browser:
        address = url.replace("127.0.0.1", "localhost")
        reached_at(fleet, address)
        browser.call("WebAuthn.enable")
        browser.call("WebAuthn.addVirtualAuthenticator", options=AUTHENTICATOR)
        yield fleet, browser, address


def reached_at(fleet, address):
    context: Context = fleet.app.state.context
    writer = replace(context.writer, base_url=address)
    fleet.app.state.context = replace(context, writer=writer)


def code_for(fleet, name="anna", role="operator"):
    answer = fleet.client("admin").post("/api/v1/users", json={"name": name, "role": role})
    return answer.json()["url"]


def text(browser):
    return browser.evaluate("document.body.innerText")


def click(browser, name):
    browser.evaluate(f"document.getElementById('{name}').click()")


def submit(browser, form, **fields):
    for name, value in fields.items():
        browser.evaluate(f"document.getElementById('{name}').value = {value!r}")
    browser.evaluate(f"document.getElementById('{form}').requestSubmit()")


def said(browser, words):
    browser.wait_for(f"document.body.innerText.includes({words!r})")


def reload(browser, until):
    # the page that goes away may still answer
    browser.evaluate("window.isOld = true; location.reload()")
    browser.wait_for(f"!window.isOld && {until}")


CLAIMS = "document.querySelectorAll('#view .empty:not([hidden])').length"
"""How often the page says that there is nothing, which it must have heard first."""


def test_a_code_becomes_a_password_that_logs_in_again(page):
    fleet, browser, address = page
    browser.open(code_for(fleet))
    browser.wait_for(ASKS)
    assert browser.evaluate("location.href") == f"{address}/"
    assert "Welcome, anna" in text(browser)
    submit(browser, "choose", **{"new-password": PASSWORD})
    browser.wait_for(IS_IN)
    assert "anna, operator" in text(browser)
    assert browser.evaluate("document.cookie") == ""
    reload(browser, IS_IN)
    click(browser, "logout")
    said(browser, "You are logged out.")
    assert "anna, operator" not in text(browser)
    assert browser.evaluate(CLAIMS) == 0
    reload(browser, IS_OUT)
    assert browser.evaluate(CLAIMS) == 0
    submit(browser, "password-form", name="anna", password="wrong horse battery")
    said(browser, "do not fit together")
    submit(browser, "password-form", name="anna", password=PASSWORD)
    browser.wait_for(IS_IN)
    assert browser.evaluate("document.getElementById('password').value") == ""


def test_a_code_becomes_a_passkey_that_logs_in_again(page):
    fleet, browser, _ = page
    browser.open(code_for(fleet))
    browser.wait_for(ASKS)
    click(browser, "choose-passkey")
    browser.wait_for(IS_IN)
    for _ in range(2):
        click(browser, "logout")
        browser.wait_for(IS_OUT)
        browser.wait_for("document.getElementById('passkey').hidden === false")
        click(browser, "passkey")
        browser.wait_for(IS_IN)
        assert "anna, operator" in text(browser)


def test_a_code_that_was_used_says_so(page):
    fleet, browser, _ = page
    url = code_for(fleet)
    body = {"code": url.partition("=")[2], "password": PASSWORD}
    fleet.client().post("/api/v1/login/code/password", json=body)
    browser.open(url)
    said(browser, "unknown, used or expired")
    assert browser.evaluate(IS_OUT)


def test_no_passkey_is_offered_at_an_address(page):
    fleet, browser, address = page
    numbers = address.replace("localhost", "127.0.0.1")
    reached_at(fleet, numbers)
    browser.open(code_for(fleet))
    browser.wait_for(ASKS)
    assert browser.evaluate("document.getElementById('choose-passkey').hidden")
    submit(browser, "choose", **{"new-password": PASSWORD})
    browser.wait_for(IS_IN)
    click(browser, "logout")
    browser.wait_for(IS_OUT)
    assert browser.evaluate("document.getElementById('passkey').hidden")


def test_a_removed_person_is_shown_out_at_once(page):
    fleet, browser, _ = page
    browser.open(code_for(fleet))
    browser.wait_for(ASKS)
    submit(browser, "choose", **{"new-password": PASSWORD})
    browser.wait_for(IS_IN)
    fleet.client("admin").request("DELETE", "/api/v1/users/anna")
    said(browser, "log in again")
    assert browser.evaluate("document.getElementById('view').hidden")


def test_an_operator_acts_with_a_cookie_and_a_viewer_cannot(page):
    fleet, browser, _ = page
    ask = (
        "fetch('/api/v1/groups', {method: 'POST', headers: {'Content-Type': 'application/json'},"
        " body: JSON.stringify({name: '%s', labels: {}})}).then((answer) => answer.status)"
    )
    for role, status in (("viewer", 403), ("operator", 201)):
        browser.open(code_for(fleet, f"a-{role}", role))
        browser.wait_for(ASKS)
        submit(browser, "choose", **{"new-password": PASSWORD})
        browser.wait_for(IS_IN)
        assert f"a-{role}, {role}" in text(browser)
        assert browser.evaluate(ask % role) == status


def test_the_doors_fit_a_phone_in_dark_and_light(page):
    fleet, browser, address = page
    url = code_for(fleet)
    for dark in (False, True):
        browser.resize(360, 740, dark=dark)
        browser.open(f"{address}/")
        browser.wait_for(IS_OUT)
        assert browser.evaluate(WIDE) == 0
        browser.open(url)
        browser.wait_for(ASKS)
        assert browser.evaluate(WIDE) == 0
