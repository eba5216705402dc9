"""Over which interface a host is reached, and what may come over it."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest

from edgepack_runtime.config import DownloadConfig
from edgepack_runtime.errors import TransientSourceError, WaitingSourceError
from edgepack_runtime.sources.links import Links, interface_of, interface_to


def links(interface, **config) -> Links:
    return Links(DownloadConfig(**config), lambda _host, _port: interface)


def test_each_link_has_its_cap():
    config = {"bytes_per_second": 5, "metered": ["wwan0"], "metered_bytes_per_second": 2}
    assert links("wwan0", **config).pace("r.example", 443).rate == 2
    assert links("eth0", **config).pace("r.example", 443).rate == 5
    assert links(None, **config).pace("r.example", 443).rate == 5
    assert links("wwan0", bytes_per_second=5).pace("r.example", 443).rate == 5


def test_a_closed_link_is_waited_for_in_words():
    with pytest.raises(WaitingSourceError, match=r"unmetered link: .* by wwan0") as caught:
        links("wwan0", metered=["wwan0"]).pace("r.example", 443)
    assert isinstance(caught.value, TransientSourceError)
    assert caught.value.code == "waits-unmetered"


def test_other_caps_hold_at_once_and_slots_share_them():
    some = links("eth0", bytes_per_second=5)
    pace = some.pace("r.example", 443)
    assert some.pace("s.example", 443) is pace
    some.reconfigure(DownloadConfig(bytes_per_second=9))
    assert pace.rate == 9


def test_without_metered_links_nobody_asks_for_routes():
    def never(_host, _port):
        raise AssertionError("asked")

    assert Links(DownloadConfig(bytes_per_second=3), never).pace("r.example", 1).rate == 3


def test_loopback_is_reached_by_lo():
    assert interface_to("127.0.0.1", 9) == "lo"
    assert interface_to("localhost", 9) == "lo"
    assert interface_of("::1%lo") == "lo"


def test_an_address_of_this_machine_is_of_its_interface():
    """The kernel's own table of local addresses is the referee."""
    rows = Path("/proc/net/fib_trie").read_text().splitlines()
    local = {
        before.split()[-1]
        for before, row in itertools.pairwise(rows)
        if row.strip() == "/32 host LOCAL" and "127." not in before
    }
    names = {name for _, name in socket.if_nameindex()}
    found = {address: interface_of(address) for address in local}
    assert set(found.values()) <= names, found
    if local:
        assert "lo" not in found.values()


def test_what_is_no_address_of_this_machine_has_no_interface():
    for address in ("192.0.2.1", "2001:db8::1", "nonsense"):
        assert interface_of(address) is None
    assert interface_to("name.invalid", 443) is None
