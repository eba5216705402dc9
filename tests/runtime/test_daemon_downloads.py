"""A daemon that is killed while it downloads goes on where it was."""

from __future__ import annotations

import pytest
from broker_process import Broker
from large_bundles import large_bundle
from pull_registry import pull_registry
from toxic_proxy import toxic_proxy
from world_device import FLEET, Device, make_home, runs
from world_waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("device-daemon")]

SIZE = 400_000
CAP = "[download]\nbytes_per_second = 250000\n"


@pytest.fixture(scope="module")
def broker():
    broker = Broker()
    yield broker
    broker.kill()


@pytest.mark.parametrize("packed", [True, False], ids=["compressed", "as it is"])
def test_a_killed_daemon_goes_on_with_its_download(tmp_path, broker, packed):
    digest = large_bundle(tmp_path / "large.edgepack", "1.0.0", size=SIZE)
    name = "packed" if packed else "plain"
    home = tmp_path / name
    make_home(home, name, broker.port)
    with (home / "device.toml").open("a") as config:
        config.write(CAP)
    device = Device(home, name, broker.port, FLEET)
    part = f"slots/*/staging/*/{'packed/*.gz' if packed else 'model/model.onnx'}"

    def is_half_way() -> bool:
        return any(path.stat().st_size > 80_000 for path in (home / "state").glob(part))

    with pull_registry(tmp_path / "large.edgepack") as registry, toxic_proxy(registry.port) as way:
        registry.packed = packed
        try:
            device.start()
            device.wish(digest, f"http://{way.address}/models/digits")
            eventually(is_half_way, lambda: f"a download under way:\n{device.process.said}")
            device.process.kill()
            device.start()
            device.hear_reported(runs(digest))
            assert device.serves(), device.process.said
        finally:
            device.close()
    asked = [headers for path, headers in registry.asked if "Range" in headers]
    assert len(asked) == 1
    assert int(asked[0]["Range"].removeprefix("bytes=").removesuffix("-")) >= 80_000
    assert ("If-Range" in asked[0]) is packed
