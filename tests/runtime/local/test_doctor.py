"""The doctor: what it finds of machine, keys, clock, broker and fleet, and that it ends."""

from __future__ import annotations

import errno
import socket
import threading
from pathlib import Path

import msgspec
import pytest
from world_device import OWNER

from edgepack_contract.certificates import Authority
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.limits import MIB
from edgepack_runtime import machine_state
from edgepack_runtime.config import FleetConfig, MqttConfig
from edgepack_runtime.local import machine_checks
from edgepack_runtime.local.findings import Verdict, fail, ok, run_checks
from edgepack_runtime.local.link_checks import check_broker, check_connection, check_fleet
from edgepack_runtime.local.machine_checks import (
    check_disk,
    check_memory,
    check_service,
    check_usage_data,
    check_versions,
    filesystem_of,
)
from edgepack_runtime.local.trust_checks import check_clock, check_keys, check_security
from edgepack_runtime.storage.fsio import Syscalls

NOW = 1_800_000_000_000
DAY = 86_400_000
MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:25 / /run rw,nosuid - tmpfs tmpfs rw
31 22 179:1 / /boot/my\\040disk rw - vfat /dev/mmcblk0p1 rw
32 22 0:30 / /data ro,relatime - f2fs /dev/sda rw
nonsense
"""


@pytest.fixture
def config(device_config):
    return device_config()


def verdicts(found):
    return {one.check: one.verdict for one in found}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/var/lib", "ext4"), ("/run/x", "tmpfs"), ("/boot/my disk/a", "vfat"), ("/runner", "ext4"),
     ("/data", "f2fs")],
)  # fmt: skip
def test_the_file_system_of_a_folder(folder, kind):
    assert filesystem_of(Path(folder), MOUNTS)[0] == kind
    assert filesystem_of(Path(folder), "")[0] == "unknown"


def test_a_good_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_checks, "filesystem_of", lambda *_: ("ext4", "rw"))
    found = verdicts(check_disk(tmp_path))
    assert found == {"disk": "ok", "filesystem": "ok", "fsync": "ok"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "options", "verdict"),
    [("vfat", "rw", "warn"), ("overlay", "rw", "warn"), ("nfs4", "rw", "warn"),
     ("ext4", "ro,relatime", "fail")],
)  # fmt: skip
def test_a_risky_file_system(tmp_path, monkeypatch, kind, options, verdict):
    monkeypatch.setattr(machine_checks, "filesystem_of", lambda *_: (kind, options))
    found = check_disk(tmp_path)
    assert verdicts(found)["filesystem"] == verdict
    assert found[1].remedy


@pytest.mark.parametrize(
    ("number", "verdict"), [(errno.ENOSPC, "fail"), (errno.EIO, "fail"), (errno.EACCES, "warn")]
)
def test_a_disk_that_does_not_take_a_file(tmp_path, monkeypatch, number, verdict):
    def create(*_):
        raise OSError(number, "so it is")

    monkeypatch.setattr(Syscalls, "create", create)
    assert verdicts(check_disk(tmp_path))["fsync"] == verdict


def test_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_checks, "RESERVE_BYTES", 1 << 60)
    assert verdicts(check_disk(tmp_path))["disk"] == "fail"
    assert verdicts(check_disk(tmp_path / "none"))["disk"] == "fail"


@pytest.mark.parametrize(
    ("free", "verdict"), [(None, "warn"), (64 * MIB, "warn"), (512 * MIB, "ok")]
)
def test_memory(monkeypatch, free, verdict):
    state = machine_state.MachineState(None, None, free, None, None)
    monkeypatch.setattr(machine_state, "look", lambda _: state)
    assert verdicts(check_memory()) == {"memory": verdict}


def test_versions(monkeypatch):
    assert verdicts(check_versions()) == {"versions": "ok", "onnxruntime": "ok"}
    monkeypatch.setattr(machine_checks.importlib.metadata, "version", lambda _: "1.27.0")
    assert verdicts(check_versions())["onnxruntime"] == "fail"


def test_usage_data():
    assert verdicts(check_usage_data({})) == {"usage-data": "ok"}
    assert verdicts(check_usage_data({"ORT_DISABLE_TELEMETRY": "0"})) == {"usage-data": "warn"}


def test_the_service(tmp_path):
    unit = tmp_path / "edgepack.service"
    assert verdicts(check_service([unit], tmp_path / "none")) == {"service": "ok"}
    assert verdicts(check_service([unit], tmp_path)) == {"service": "warn"}
    unit.touch()
    assert verdicts(check_service([unit], tmp_path)) == {"service": "ok"}


def test_good_keys_and_a_good_clock(config):
    assert verdicts(check_keys(config, lambda: NOW)) == {"keys": "ok"}
    assert verdicts(check_clock(config, lambda: NOW)) == {"keyring": "ok", "clock": "ok"}
    assert verdicts(check_security(config)) == {"security": "ok"}
    assert not (Path(config.state_dir) / "trust.json").exists()


def test_a_clock_that_is_behind(config):
    found = check_clock(config, lambda: 1_500_000_000_000)
    assert verdicts(found)["clock"] == "fail"
    assert "timedatectl" in found[-1].remedy


def test_a_keyring_of_somebody_else(config):
    identity = msgspec.structs.replace(config.identity, owner="0" * 64)
    config = msgspec.structs.replace(config, identity=identity)
    assert verdicts(check_clock(config, lambda: NOW)) == {"keyring": "fail"}


def test_keys_that_others_can_read_or_that_are_damaged(config):
    Path(config.identity.key).chmod(0o644)
    assert verdicts(check_security(config)) == {"security": "fail"}
    Path(config.identity.mac_key).write_text("xyz")
    assert verdicts(check_keys(config, lambda: NOW)) == {"keys": "fail"}


@pytest.mark.parametrize(
    ("days", "name", "own", "wanted"),
    [(0, "pi-9", True, ["ok"]), (80, "pi-9", True, ["warn"]), (95, "pi-9", True, ["fail"]),
     (0, "pi-8", True, ["ok", "fail"]), (0, "pi-9", False, ["ok", "fail"])],
    ids=["good", "soon", "ended", "name", "key"],
)  # fmt: skip
def test_certificates(config, tmp_path, days, name, own, wanted):
    key = read_private_key(Path(config.identity.key)) if own else PrivateKey.generate()
    authority = Authority.create(OWNER, name="ca", now_ms=NOW)
    issued = authority.issue_client(key.public, name=name, now_ms=NOW)
    (tmp_path / "device.pem").write_bytes(issued.pem)
    identity = msgspec.structs.replace(config.identity, certificate=str(tmp_path / "device.pem"))
    config = msgspec.structs.replace(config, identity=identity)
    found = check_keys(config, lambda: NOW + days * DAY)
    assert [one.verdict for one in found if one.check == "certificate"] == wanted


def test_a_broker_that_is_not_there_and_one_that_says_nothing(config, monkeypatch):
    monkeypatch.setattr("edgepack_runtime.local.link_checks.LOGIN_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        there = msgspec.structs.replace(config, mqtt=MqttConfig(host="127.0.0.1", port=port))
        found = check_broker(there, None, lambda: NOW)
        assert (found[0].verdict, found[0].words) == ("fail", "it does not answer the login")
        tls = MqttConfig(host="127.0.0.1", port=port, tls=True)
    gone = check_broker(there, None, lambda: NOW)
    assert (gone[0].verdict, "refused" in gone[0].words) == ("fail", True)
    guarded = msgspec.structs.replace(config, mqtt=tls)
    assert check_broker(guarded, None, lambda: NOW)[0].verdict == "fail"


def test_a_port_that_does_not_speak_tls(config, monkeypatch):
    monkeypatch.setattr("edgepack_runtime.local.link_checks.CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        mqtt = MqttConfig(host="127.0.0.1", port=server.getsockname()[1], tls=True)
        (found,) = check_broker(msgspec.structs.replace(config, mqtt=mqtt), None, lambda: NOW)
    assert found.verdict == "fail"
    assert "it does not answer in time" in found.words
    assert "port for TLS" in found.remedy


def test_a_fleet_that_is_not_there(config):
    assert verdicts(check_fleet(config, lambda: NOW)) == {"fleet": "ok"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    config = msgspec.structs.replace(config, fleet=FleetConfig(url=url))
    found = check_fleet(config, lambda: NOW)
    assert (found[0].verdict, url in found[0].words) == ("fail", True)


def test_no_daemon_is_no_connection():
    assert verdicts(check_connection(None, [])) == {"connection": "warn"}


def test_checks_run_side_by_side_in_order_and_end():
    go_on = threading.Event()

    def waits():
        go_on.wait(60)
        return [ok("waits", "")]

    def breaks():
        raise ValueError("so it is")

    checks = {"waits": waits, "breaks": breaks, "fails": lambda: [fail("fails", "a", "b")]}
    found = run_checks(checks, seconds=0.2)
    go_on.set()
    assert [one.check for one in found] == ["waits", "breaks", "fails"]
    assert {one.verdict for one in found} == {Verdict.FAIL}
    assert "took more than" in found[0].words
    assert "so it is" in found[1].words
