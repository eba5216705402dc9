"""``edgepack local`` and its sisters against a real daemon, and against none."""

from __future__ import annotations

import json
import re
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from broker_process import Broker
from bundle_samples import STRANGER
from world_bundles import MODEL, tiny_bundle
from world_device import FLEET, Device, make_home
from world_process import ask
from world_waiting import eventually

from edgepack_cli.commands import local as commands
from edgepack_runtime.local.asking import Asking

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("device-local")]

ROOT = Path(__file__).parents[3]
CAPTURE = """
[capture]
share = 1.0
redact = ["p"]
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundle files by version."""
    folder = tmp_path_factory.mktemp("bundles")
    found = {}
    for version, options in (
        ("1.0.0", {}), ("1.1.0", {}), ("6.6.6", {"signer": STRANGER}), ("6.6.7", {"signer": None}),
    ):  # fmt: skip
        found[version] = folder / f"{version}.edgepack"
        tiny_bundle(found[version], version, **options)
    return found


@pytest.fixture(scope="module")
def device(tmp_path_factory, bundles):
    """A device whose fleet says nothing, and which runs 1.0.0 by hand."""
    broker = Broker()
    home = tmp_path_factory.mktemp("device-of-a-folder-with-a-name-that-no-socket-address-holds")
    make_home(home / "pi", "pi-local", broker.port)
    with (home / "pi" / "device.toml").open("a") as config:
        config.write(CAPTURE)
    device = Device(home / "pi", "pi-local", broker.port, FLEET)
    try:
        device.start()
        yield device
    finally:
        device.close()
        broker.kill()


@pytest.fixture
def here(cli, device):
    """Calls a command about the device."""

    def call(*words, **typed):
        return cli(*words, "--config", device.home / "device.toml", **typed)

    return call


@pytest.fixture
def running(here, bundles):
    """1.0.0 runs."""
    slot = view(here)["slots"]
    if not slot or slot[0]["serving"] is None or slot[0]["serving"]["version"] != "1.0.0":
        ended = here("local", "install", bundles["1.0.0"], "--probation", "0.2")
        assert ended.code == 0, ended.err
    return view(here)["slots"][0]


def view(here):
    ended = here("local", "status", "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_status_before_anything(here, device):
    ended = here("local", "status")
    assert ended.code == 0, ended.err
    assert "device pi-local: daemon" in ended.out
    assert "memory" in ended.out
    mode = (device.home / "state" / "control.sock").stat().st_mode
    assert mode & 0o777 == 0o600


def test_an_install_is_followed_to_its_end_and_what_it_did_is_kept(here, bundles, running):
    ended = here("local", "install", bundles["1.1.0"], "--probation", "0.2")
    assert (ended.code, ended.out[:22]) == (0, "slot tiny runs 1.1.0 (")
    assert "what the fleet wants next takes its place" in ended.err
    told = here("local", "history", "--json")
    newest = json.loads(told.out)[0]["record"]
    assert (newest["outcome"], newest["version"]) == ("installed", "1.1.0")
    assert newest["figures"]["probe_p50_ms"] > 0
    assert "1.1.0" in here("local", "history").out
    back = here("local", "rollback", "--probation", "0.2", "--json")
    slot = json.loads(back.out)
    assert (back.code, slot["serving"]["version"], slot["previous"]["version"]) == (
        0, "1.0.0", "1.1.0",
    )  # fmt: skip
    why = here("local", "why")
    assert "tiny 1.0.0" in why.out
    assert "is what is wanted" in why.out


@pytest.mark.parametrize(
    ("version", "code"), [("6.6.6", "unknown-publisher"), ("6.6.7", "unsigned")]
)
def test_what_the_keyring_does_not_vouch_for_is_refused(here, bundles, running, version, code):
    ended = here("local", "install", bundles[version])
    assert ended.code == 6
    assert f"[{code}]" in ended.err
    assert view(here)["slots"][0]["serving"] == running["serving"]


def test_a_file_that_the_daemon_cannot_use(here, tmp_path, running):
    path = tmp_path / "nonsense.edgepack"
    path.write_bytes(b"nonsense")
    assert here("local", "install", path).code == 6
    assert here("local", "install", path, "--slot", "No Slot!").code == 3


def test_an_unknown_slot_is_named(here, running):
    for words in (("status",), ("why",), ("history",), ("rollback",)):
        ended = here("local", *words, "--slot", "nope")
        assert (ended.code, "there is no slot" in ended.err, "tiny" in ended.err) == (3, True, True)


def test_captured_requests_are_listed_shown_and_exported(here, device, running, tmp_path):
    body = {"id": "r-9", "inputs": [
        {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": list(range(8))}
    ]}  # fmt: skip
    assert ask(device.home / "serve.sock", "POST", f"/v2/models/{MODEL}/infer", body).status == 200
    listed = eventually(
        lambda: json.loads(here("capture", "list", "--json").out), "a captured request"
    )
    assert (listed[0]["origin"]["request"], listed[0]["rows"]) == ("r-9", 2)
    assert "r-9" in here("capture", "list").out
    shown = json.loads(here("capture", "show", listed[0]["name"]).out)
    assert shown["tensors"]["input:x"]["data"][1] == [4.0, 5.0, 6.0, 7.0]
    assert "output:p" not in shown["tensors"]
    assert here("capture", "show", "0-0").code == 3
    file = tmp_path / "rows.npz"
    ended = here("capture", "export", file)
    assert (ended.code, "2 rows of 1 requests" in ended.out) == (0, True)
    with np.load(file, allow_pickle=False) as found:
        assert found["x"].shape == (2, 4)
    again = here("capture", "export", file, "--with-origins", "--request", "r-9")
    assert (again.code, "--overwrite" in again.err) == (3, True)
    again = here("capture", "export", file, "--with-origins", "--request", "r-9", "--overwrite")
    assert again.code == 0
    with np.load(file, allow_pickle=False) as found:
        assert found["origin:request"].tolist() == ["r-9", "r-9"]
    missing = here("capture", "export", tmp_path / "no" / "rows.npz")
    assert (missing.code, "there is no folder" in missing.err) == (3, True)
    assert "nothing of r-8 is captured" in here("capture", "list", "--request", "r-8").out
    assert here("capture", "clear", "--yes").code == 0
    assert "nothing is captured" in here("capture", "list").out
    assert here("capture", "export", tmp_path / "none.npz", "--slot", "tiny").code == 3


def test_the_doctor_of_a_running_device(here, running):
    ended = here("doctor", "--json")
    found = {one["check"]: one for one in json.loads(ended.out)}
    assert ended.code == 0
    assert (found["broker"]["verdict"], found["slot tiny"]["verdict"]) == ("ok", "ok")
    assert "the daemon is connected" in found["broker"]["words"]
    assert "OK    keyring: version 1" in here("doctor").out


def test_a_support_bundle_tells_no_secret(here, device, running, tmp_path):
    path = tmp_path / "support.tar.gz"
    ended = here("support-bundle", "-o", path)
    assert ended.code == 0, ended.err
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        files = {one.name: archive.extractfile(one).read() for one in archive.getmembers()}
    names = {name.removeprefix("edgepack-support/") for name in files}
    assert {"logs.jsonl", "metrics.txt", "doctor.json", "config.json", "status.json"} <= names
    assert {"slots/tiny/state.json", "slots/tiny/history.json", "versions.json"} <= names
    assert not any(name.startswith("capture/") for name in names)
    assert b'"event": "serving"' in files["edgepack-support/logs.jsonl"]
    whole = b"".join(files.values())
    key = (device.home / "device.key").read_text().splitlines()
    for secret in (device.mac_key.hex(), *key[1:-1]):
        assert secret.encode() not in whole


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/control/v1/nothing", None, 404),
        ("POST", "/control/v1/status", None, 404),
        ("POST", "/control/v1/install", {"path": 3}, 400),
        ("POST", "/control/v1/install", {"path": "/none", "more": 1}, 400),
        ("POST", "/control/v1/install", {"path": "/none"}, 409),
        ("POST", "/control/v1/install", {"path": "a" * 20_000}, 413),
        ("POST", "/control/v1/rollback", {"slot": "nope"}, 409),
        ("POST", "/v1/models/tiny:predict", {"instances": []}, 404),
        ("GET", "/metrics", None, 200),
    ],
    ids=["unknown", "method", "type", "field", "file", "large", "slot", "predict", "metrics"],
)
def test_what_the_control_socket_says_to_nonsense(device, running, method, path, body, status):
    asking = Asking(device.home / "state")
    raw = None if body is None else json.dumps(body).encode()
    found, said = asking.fetch(method, path, raw)
    assert (found, status == 200 or "error" in json.loads(said)) == (status, True)


def test_healthcheck_by_the_configuration(here, running):
    assert here("healthcheck").code == 0
    assert here("healthcheck", "--ready").code == 0


def test_the_commands_of_the_page_work(here, device, bundles, running, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundles["1.1.0"], "tiny-1.4.0.edgepack")
    page = (ROOT / "docs" / "on-the-device.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [line.replace("churn", MODEL) for line in "".join(blocks).splitlines()]
    # by the order of the page the reset is before the capture
    reset = next(line for line in lines if "factory-reset" in line)
    lines.append(lines.pop(lines.index(reset)))
    assert len(lines) == 12
    captured(here, device)
    for line in lines:
        words = line.replace(" --config /etc/edgepack/device.toml", "").split()[1:]
        ended = here(*words)
        assert ended.code == 0, (line, ended.err)


def captured(here, device):
    body = {"instances": [[1, 2, 3, 4]]}
    device.predict(body)
    eventually(lambda: here("capture", "list").out.count(MODEL), "a captured request")


def test_a_stopped_device_is_looked_at_and_reset(here, device, bundles, running, monkeypatch):
    monkeypatch.setattr(commands, "POLL_SECONDS", 0.01)
    assert device.process.end(signal.SIGTERM) == 0
    ended = here("local", "status")
    assert "no daemon runs" in ended.out
    assert "1.0.0" in ended.out
    assert "no daemon runs, so nothing answers" in here("local", "why").out
    for words in (("install", bundles["1.1.0"]), ("rollback",)):
        refused = here("local", *words)
        assert refused.code == 3
        assert "this needs one: systemctl start edgepack" in refused.err
    found = {one["check"]: one for one in json.loads(here("doctor", "--json").out)}
    assert "lets this device in" in found["broker"]["words"]
    assert found["connection"]["verdict"] == "warn"
    asked = here("local", "factory-reset", typed="n\n")
    assert (asked.code, "Remove the bundles" in asked.err) == (130, True)
    assert here("local", "factory-reset", "--slot", "nope", "--yes").code == 3
    assert here("local", "factory-reset", "--yes").out == "emptied: tiny\n"
    assert list((device.home / "state" / "slots" / MODEL / "store").iterdir()) == []
    assert "no install has ended here yet" in here("local", "history").out
    device.start()
    slot = view(here)["slots"][0]
    assert (slot["phase"], slot["code"], slot["serving"]) == ("idle", "emptied-here", None)
    assert here("local", "install", bundles["1.0.0"], "--probation", "0.2").code == 0
    assert here("local", "factory-reset", "--slot", MODEL, "--yes", "--json").code == 0
    eventually(lambda: view(here)["slots"][0]["phase"] == "idle", "an empty slot")


def test_a_device_that_is_not_there(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("edgepack_cli.place.DEFAULT_CONFIG", tmp_path / "device.toml")
    ended = cli("local", "status")
    assert (ended.code, "name the device with --config or --state-dir" in ended.err) == (78, True)
    assert cli("local", "status", "--state-dir", tmp_path / "none").code == 78
    assert cli("local", "status", "--state-dir", tmp_path).out.startswith(f"{tmp_path}: no daemon")
    both = cli("local", "status", "--state-dir", tmp_path, "--config", tmp_path / "x")
    assert both.code == 2


def test_the_doctor_of_a_wrong_configuration(cli, tmp_path):
    config = tmp_path / "device.toml"
    config.write_text("device = 3\n")
    ended = cli("doctor", "--config", config)
    assert ended.code == 1
    assert ended.out.startswith("FAIL  config: ")
    assert f"mend {config}" in ended.out
