"""Debian's ``docker-registry`` with other bytes under the right digest: refused, and got over."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from broker_process import Broker
from docker_registry import registry
from world_bundles import MODEL, model_files, tiny_bundle
from world_device import FLEET, Device, make_home, runs

from edgepack_contract.states import Phase

pytestmark = pytest.mark.foreign("docker-registry")


@pytest.fixture
def device(tmp_path):
    broker = Broker()
    home = tmp_path / "pi-1"
    make_home(home, "pi-1", broker.port)
    device = Device(home, "pi-1", broker.port, FLEET)
    yield device
    device.close()
    broker.kill()


def push(path, address):
    pushed = subprocess.run(
        [sys.executable, "-m", "edgepack_cli", "oci", "push", path, f"{address}/models/tiny"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert pushed.returncode == 0, pushed.stderr


def blob(folder: Path, digest: str) -> Path:
    """The file in which the registry keeps a blob."""
    code = digest.removeprefix("sha256:")
    return folder / f"data/docker/registry/v2/blobs/sha256/{code[:2]}/{code}/data"


def sha256(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def lie(path: Path) -> bytes:
    """Change one bit in the middle; the length stays. What was there before."""
    raw = path.read_bytes()
    at = len(raw) // 2
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    return raw


def test_other_bytes_are_refused_by_name_until_the_registry_is_right_again(tmp_path, device):
    one, two = tmp_path / "1.edgepack", tmp_path / "2.edgepack"
    first, second = tiny_bundle(one, "1.0.0"), tiny_bundle(two, "1.1.0")
    files = model_files("1.1.0")
    lies = [sha256(files[name]) for name in ("model.onnx", "golden.safetensors")]
    with registry(tmp_path / "r") as address:
        push(one, address)
        push(two, address)
        source = f"http://{address}/models/tiny"
        device.start()
        device.wish(first, source)
        device.hear_reported(runs(first))
        for digest in lies:
            path = blob(tmp_path / "r", digest)
            whole = lie(path)
            device.forget()
            device.wish(second, source)
            said = device.hear_reported(lambda said: said.slots[MODEL].phase is Phase.REJECTED)
            slot = said.slots[MODEL]
            assert (slot.code, slot.running, slot.wanted) == ("wrong-digest", first, second)
            assert device.version() == "1.0.0"
            device.wait_tidy()
            path.write_bytes(whole)
        # of a manifest the registry itself notices, and a server's fault may pass
        path = blob(tmp_path / "r", second)
        whole = lie(path)
        device.wish(second, source)
        device.process.wait_said("answered 500")
        path.write_bytes(whole)
        device.hear_reported(runs(second))
        assert device.version() == "1.1.0"
