"""A device that was off until its certificate had ended, with a real broker and a real service."""

from __future__ import annotations

import pytest
from broker_tls import wall_ms
from world_process import Process, ask
from world_tls import DEVICE, TlsLoop

from edgepack_contract.certificates import Authority
from edgepack_contract.keys import read_private_key

pytestmark = [pytest.mark.foreign("mosquitto"), pytest.mark.e2e]


@pytest.fixture
def loop(tmp_path):
    loop = TlsLoop(tmp_path)
    loop.join()
    yield loop
    loop.close()


def end_certificate(loop):
    """As if the device had been off for long: its certificate ended a minute ago."""
    keys = loop.folder / "keys"
    pem = (keys / "authority.pem").read_bytes()
    authority = Authority.open(read_private_key(keys / "authority.key"), pem)
    device = read_private_key(loop.home / "device.key").public
    minute_ms = 60_000
    ended = authority.issue_client(device, name=DEVICE, now_ms=wall_ms() - minute_ms, days=0)
    (loop.home / "device.pem").write_bytes(ended.pem)
    return ended.pem


def test_it_renews_and_connects_by_itself(loop):
    ended = end_certificate(loop)
    loop.run_device()
    said = loop.daemon.said
    assert "certificate renewed" in said
    assert said.index("certificate renewed") < said.index("connected to the broker")
    assert (loop.home / "device.pem").read_bytes() != ended


def test_one_that_was_revoked_says_so_and_serves_on(loop):
    loop.cli("device", "revoke", DEVICE)
    ended = end_certificate(loop)
    config, log = loop.home / "device.toml", loop.folder / "daemon.log"
    loop.daemon = Process(log, "edgepack_cli", "run", "--config", config)
    port = loop.daemon.port()
    loop.daemon.wait_said("renewal_refused")
    assert "was revoked" in loop.daemon.said
    assert "connected to the broker" not in loop.daemon.said
    assert ask(port, "GET", "/v2/health/live").status == 200
    assert (loop.home / "device.pem").read_bytes() == ended
