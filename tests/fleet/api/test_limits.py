"""How often clients may ask: strictly at the doors, generously elsewhere, and each by itself."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from fleet_http import basic, open_fleet

from edgepack_contract.errors import ConfigError
from edgepack_fleet.api.limits import ALL_TOGETHER, FAILURES, PER_ADDRESS, Door, Limiter
from edgepack_fleet.api.problems import TooManyRequestsError
from edgepack_fleet.config import HttpConfig, load_config
from edgepack_fleet.tokens import new_secret


@pytest.fixture
def fleet(tmp_path):
    with open_fleet(tmp_path) as fleet:
        yield fleet


def passed(ask, most=1000):
    """How many requests pass before the first that does not."""
    for number in range(most):
        try:
            ask(number)
        except TooManyRequestsError:
            return number
    return most


def codes(fleet, number, **headers):
    client = fleet.client(**headers)
    answers = [client.post("/api/v1/login/code", json={"code": "x"}) for _ in range(number)]
    return [answer.status_code for answer in answers]


def test_a_door_lets_ten_a_minute_knock(fleet):
    assert codes(fleet, 12) == [401] * 10 + [429] * 2
    fleet.clock.now_ms += 6000
    assert codes(fleet, 2) == [401, 429]
    fleet.clock.now_ms += 60_000
    assert codes(fleet, 12) == [401] * 10 + [429] * 2


def test_a_refusal_says_when_to_come_back(fleet):
    codes(fleet, 10)
    answer = fleet.client().post("/api/v1/login/code", json={"code": "x"})
    assert answer.status_code == 429
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == "6"
    assert answer.json()["code"] == "too-many-requests"
    assert "6 s" in answer.json()["detail"]
    assert "Content-Security-Policy" in answer.headers


def test_what_is_limited_is_not_looked_at(fleet):
    codes(fleet, 10)
    answer = fleet.client().post("/api/v1/login/code", content=b"not json")
    assert answer.status_code == 429


def test_one_door_does_not_close_another(fleet):
    codes(fleet, 12)
    body = {"name": "anna", "password": "x"}
    assert fleet.client().post("/api/v1/login/password", json=body).status_code == 401
    assert fleet.client("viewer").get("/api/v1/me").status_code == 200


@pytest.mark.parametrize("door", get_args(Door))
def test_everybody_together_is_limited_too(door):
    limiter = Limiter(HttpConfig())
    assert passed(lambda _: limiter.enter(door, "10.0.0.1", 0)) == PER_ADDRESS.burst
    assert passed(lambda n: limiter.enter(door, f"10.1.0.{n % 250}", 0)) < ALL_TOGETHER.burst
    assert passed(lambda n: limiter.enter(door, f"10.2.{n}.1", 0)) == 0


def test_one_household_of_ipv6_is_one_address():
    limiter = Limiter(HttpConfig())
    addresses = [f"2001:db8::{n:x}" for n in range(20)]
    assert passed(lambda n: limiter.enter("code", addresses[n], 0)) == 10


def test_failed_credentials_are_limited_and_valid_ones_pass(fleet):
    wrong = [f"Bearer {new_secret('epa_')}", "Bearer x", basic("pi-1", "x")]
    statuses = [
        fleet.client(Authorization=wrong[n % 3]).get("/api/v1/me").status_code
        for n in range(int(FAILURES.burst) + 3)
    ]
    assert statuses == [401] * int(FAILURES.burst) + [429] * 3
    assert fleet.client("viewer").get("/api/v1/me").status_code == 200
    assert fleet.client().get("/api/v1/me").status_code == 401


def test_every_caller_has_a_limit_of_their_own(tmp_path):
    with open_fleet(tmp_path) as fleet:
        fleet.app.state.limiter = Limiter(HttpConfig(requests_per_minute=60))
        one, other = fleet.client("viewer"), fleet.client("operator")
        assert [one.get("/api/v1/me").status_code for _ in range(62)] == [200] * 60 + [429] * 2
        assert other.get("/api/v1/me").status_code == 200
        assert fleet.client().get("/healthz").status_code == 200
        assert [fleet.client().get("/").status_code for _ in range(60)][-1] == 429


def test_behind_a_trusted_proxy_each_client_is_counted(fleet):
    fleet.app.state.limiter = Limiter(HttpConfig(trusted_proxies=("127.0.0.0/8",)))
    client = {"X-Forwarded-For": "6.6.6.6, 10.0.0.1"}
    assert codes(fleet, 11, **client)[-1] == 429
    assert codes(fleet, 1, **{"X-Forwarded-For": "6.6.6.6, 10.0.0.2"}) == [401]


def test_without_trusted_proxies_nobody_says_where_they_come_from(fleet):
    codes(fleet, 10)
    assert codes(fleet, 1, **{"X-Forwarded-For": "10.0.0.2"}) == [429]


def test_a_network_that_is_none_is_refused(tmp_path):
    config = tmp_path / "fleet.toml"
    config.write_text(
        'data_dir = "x"\n[keys]\nfleet = "f"\nkeyring = "k"\nowner = "' + "0" * 64 + '"\n'
        '[http]\ntrusted_proxies = ["10.0.0.1/8"]\n'
    )
    with pytest.raises(ConfigError, match=r"trusted_proxies.*10\.0\.0\.1/8"):
        load_config(config, {})
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"requests_per_minute": 1}, HttpConfig)
