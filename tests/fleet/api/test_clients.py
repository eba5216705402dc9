"""Which address a request is counted under, with and without proxies."""

from __future__ import annotations

import ipaddress

import pytest

from edgepack_fleet.api.clients import client_address, rate_key

PROXIES = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


def test_without_trusted_proxies_the_header_is_ignored():
    assert client_address("10.0.0.1", ["1.2.3.4"], []) == "10.0.0.1"
    assert client_address(None, ["1.2.3.4"], []) == "local"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4, 10.9.9.9"], "1.2.3.4"),
        ("10.0.0.1", ["10.9.9.9"], "10.9.9.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, "], "10.0.0.1"),
        ("8.8.8.8", ["1.2.3.4"], "8.8.8.8"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        (None, ["1.2.3.4"], "1.2.3.4"),
    ],
)
def test_the_last_hop_that_is_not_ours_is_the_client(peer, forwarded, client):
    assert client_address(peer, forwarded, PROXIES) == client


def test_one_household_of_ipv6_is_one_key():
    assert rate_key("2001:db8:1:2:3:4:5:6") == rate_key("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert rate_key("2001:db8:1:3::1") != rate_key("2001:db8:1:2::1")
    assert rate_key("1.2.3.4") == rate_key("::ffff:1.2.3.4") == "1.2.3.4"
    assert rate_key("local") == "local"
