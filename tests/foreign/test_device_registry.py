"""A device pulls from Debian's ``docker-registry``: a login, a private authority, kill -9."""

from __future__ import annotations

import subprocess
import sys

import pytest
from broker_process import Broker
from certificate_files import make_tls
from docker_registry import PASSWORD, USER, registry
from large_bundles import large_bundle
from toxic_proxy import toxic_proxy
from world_device import FLEET, Device, make_home, runs
from world_waiting import eventually

pytestmark = pytest.mark.foreign("docker-registry")

SIZE = 1_000_000
DOWNLOAD = """
[download]
bytes_per_second = 400000
[[download.registries]]
host = "{host}"
user = "{user}"
password_file = "password"
ca = "{ca}"
"""


@pytest.fixture
def broker():
    broker = Broker()
    yield broker
    broker.kill()


def test_a_device_is_killed_while_it_pulls_and_goes_on(tmp_path, broker):
    files = make_tls(tmp_path / "tls")
    path, home = tmp_path / "large.edgepack", tmp_path / "pi-1"
    digest = large_bundle(path, "1.0.0", size=SIZE)
    tls = f", tls: {{certificate: {files.certificate}, key: {files.key}}}"
    make_home(home, "pi-1", broker.port)
    (home / "password").touch(mode=0o600)
    (home / "password").write_text(PASSWORD + "\n")
    device = Device(home, "pi-1", broker.port, FLEET)

    def is_half_way() -> bool:
        found = (home / "state").glob("slots/*/staging/*/model/model.onnx")
        return any(one.stat().st_size > 200_000 for one in found)

    with registry(tmp_path / "r", login=True, tls=tls) as address:
        pushed = subprocess.run(
            [sys.executable, "-m", "edgepack_cli", "oci", "push", path, f"{address}/models/tiny",
             "--ca", files.authority, "--username", USER, "--password-stdin"],
            input=PASSWORD, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert pushed.returncode == 0, pushed.stderr
        with toxic_proxy(int(address.rpartition(":")[2])) as way:
            with (home / "device.toml").open("a") as config:
                config.write(DOWNLOAD.format(host=way.address, user=USER, ca=files.authority))
            try:
                device.start()
                device.wish(digest, f"https://{way.address}/models/tiny")
                eventually(is_half_way, lambda: f"a download under way:\n{device.process.said}")
                device.process.kill()
                before = way.passed
                device.start()
                device.hear_reported(runs(digest))
                assert device.version() == "1.0.0"
            finally:
                device.close()
        # what was on the disk before the kill was not sent again
        assert way.passed - before < 0.9 * SIZE
        assert PASSWORD not in device.process.said
