"""``edgepack enrol`` as it is used at a device: real processes, a real server, wrong input."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys

import pytest
from enrol_server import ENROL, KEYRING, STRANGER, TOKEN, enrol_server, keyring, refusal
from world_waiting import SECONDS, eventually

from edgepack_contract.errors import ConfigError
from edgepack_contract.keys import read_public_key
from edgepack_runtime.__main__ import main
from edgepack_runtime.membership.command import id_of_host

pytestmark = pytest.mark.e2e


class Enrolling:
    """One call of the command, with a text on its standard input."""

    def __init__(self, *arguments, typed="", **environ):
        command = [sys.executable, "-m", "edgepack_cli", "enrol", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | environ,
        )  # fmt: skip
        self._typed = str(typed)

    def type_in(self):
        """Type without an end, as at a terminal."""
        self.process.stdin.write(self._typed)
        self.process.stdin.flush()
        self._typed = None

    def end(self, number=None):
        """Wait for its end, or bring it about by a signal; returns code, stdout and stderr."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(self._typed, timeout=SECONDS)
        assert "Traceback" not in err
        assert TOKEN not in out + err
        return self.process.returncode, out, err


def enrol(*arguments, typed="", **environ):
    return Enrolling(*arguments, typed=typed, **environ).end()


@pytest.fixture
def server(tmp_path):
    with enrol_server(tmp_path / "tls") as server:
        yield server


def test_a_device_joins_and_says_who_it_is(server, tmp_path):
    home = tmp_path / "pi-1"
    labels = ("--label", "site=oslo", "--label", "kind=pump")
    code, out, err = enrol(home, "--device", "pi-1", *labels, typed=f"{server.join}\n")
    assert code == 0, err
    assert "device       pi-1 (tenant default)" in out
    assert re.search(r"certificate  until \d{4}-\d\d-\d\dT\S+ \(89 days left\)", out)
    assert f"edgepack run --config {home}/device.toml" in err
    assert server.seen[1][1]["labels"] == {"site": "oslo", "kind": "pump"}
    assert enrol(home, "--check") == (0, out, "")
    assert enrol(home / "device.toml", "--check") == (0, out, "")


def test_it_is_done_once(server, tmp_path):
    home = tmp_path / "pi-1"
    assert enrol(home, "--device", "pi-1", typed=server.join)[0] == 0
    code, _, err = enrol(home, "--device", "pi-1", typed=server.join)
    assert code == 78
    assert "is enrolled already" in err
    assert len(server.keys) == 1
    code, out, _ = enrol(home, "--device", "pi-1", "--again", typed=server.join)
    assert code == 0
    assert server.keys[1] in out
    assert server.keys[0] not in out
    assert list(home.glob("before-*/device.key"))


def test_a_killed_wait_goes_on_with_the_same_key(server, tmp_path):
    server.pending, home = 1, tmp_path / "pi-1"
    waits = Enrolling(home, "--device", "pi-1", typed=f"{server.join}\n")
    waits.type_in()
    eventually(lambda: server.keys, "a wish")
    code, _, err = waits.end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert enrol(home, "--check")[0] == 1
    code, out, err = enrol(home, "--device", "pi-1", typed=f"{server.join}\n")
    assert code == 0, err
    assert set(server.keys) == {server.keys[0]}
    assert server.keys[0] in out


def test_an_interrupted_wait_says_how_to_go_on(server, tmp_path):
    server.pending = 1000
    waits = Enrolling(tmp_path / "pi-1", "--device", "pi-1", typed=f"{server.join}\n")
    waits.type_in()
    eventually(lambda: server.keys, "a wish")
    said = [waits.process.stderr.readline() for _ in range(2)]
    code, _, err = waits.end(signal.SIGINT)
    assert code == 130
    assert "ask Ann" in said[0]
    assert server.keys[0] in said[1]
    assert "the same command goes on" in err


def test_a_wait_that_is_over(server, tmp_path):
    server.pending = 1000
    code, _, err = enrol(
        tmp_path / "pi-1", "--device", "pi-1", "--wait", "5s", typed=f"{server.join}\n"
    )
    assert code == 12
    assert "edgepack device approve pi-1" in err


def test_the_key_can_be_made_before(server, tmp_path):
    home = tmp_path / "pi-1"
    code, out, _ = enrol(home, "--make-key")
    assert code == 0
    assert enrol(home, "--make-key")[1] == out
    assert read_public_key(home / "device.pub").fingerprint == out.split()[1]
    assert out.split()[1] in enrol(home, "--check")[2]
    assert enrol(home, "--device", "pi-1", typed=server.join)[0] == 0
    assert server.keys == [out.split()[1]]


def test_another_owners_fleet_is_named(server, tmp_path):
    server.keyring = keyring(STRANGER)
    code, _, err = enrol(tmp_path / "pi-1", "--device", "pi-1", typed=server.join)
    assert code == 6
    assert f"not the fleet of owner {server.join.owner[:16]}" in err
    assert "somebody is in between" in err
    assert server.paths() == [KEYRING]


def test_a_no_is_a_sentence(server, tmp_path):
    server.twist[ENROL] = lambda _: refusal(403, "bad-join-token", "this join token is used up")
    code, _, err = enrol(tmp_path / "pi-1", "--device", "pi-1", typed=server.join)
    assert code == 3
    assert err.count("\n") == 1
    assert "this join token is used up" in err


def test_the_join_string_of_a_file_is_a_secret(server, tmp_path):
    path = tmp_path / "join.txt"
    path.touch(mode=0o644)
    path.write_text(f"{server.join}\n")
    call = (tmp_path / "pi-1", "--device", "pi-1", "--join-file", path)
    code, _, err = enrol(*call)
    assert (code, server.seen) == (78, [])
    assert f"chmod 600 {path}" in err
    path.chmod(0o600)
    assert enrol(*call)[0] == 0


def test_on_the_command_line_it_is_for_this_machine_only(server, tmp_path):
    home = tmp_path / "pi-1"
    assert enrol(home, "--device", "pi-1", "--join", server.join)[0] == 0
    far = f"https://fleet.example#{'0' * 64}:{TOKEN}"
    code, _, err = enrol(home, "--again", "--device", "pi-1", "--join", far)
    assert code == 78
    assert "everybody here can see it" in err


@pytest.fixture
def runtime(monkeypatch, capsys):
    """Calls what the command becomes, in this process."""

    def call(*arguments, typed=""):
        monkeypatch.setattr("sys.argv", ["edgepack_runtime", "enrol", *map(str, arguments)])
        with io.TextIOWrapper(io.BytesIO(typed.encode())) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            try:
                code = main()
            except SystemExit as ended:
                code = ended.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "a join string has the form"),
        ("hello", "a join string has the form"),
        ("x" * 100_000, "at most 4096 bytes"),
        (f"http://10.0.0.1#{'0' * 64}:{TOKEN}", "use https"),
        (f"https://x#{'0' * 63}:{TOKEN}", "64 hex digits"),
        (f"https://x#{'0' * 64}:short", "begins with epj_"),
        ("https://x:99999#", "proper URL"),
    ],
)
def test_a_wrong_join_string_is_named(runtime, tmp_path, typed, words):
    code, _, err = runtime(tmp_path / "pi-1", "--device", "pi-1", typed=typed + "\n")
    assert code == 78
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--device", "../x"], 78, "not a valid id"),
        (["--device", "Pi 1"], 78, "not a valid id"),
        (["--label", "x"], 2, "KEY=VALUE"),
        (["--label", "=x"], 2, "KEY=VALUE"),
        (["--wait", "soon"], 2, "30m"),
        (["--port", "65536"], 2, "0 to 65535"),
        (["--join-file", "/nonexistent"], 78, "cannot read /nonexistent"),
        (["--join-file", "/"], 78, "cannot read /"),
    ],
)
def test_wrong_arguments_are_named(runtime, tmp_path, arguments, code, words):
    device = [] if "--device" in arguments else ["--device", "pi-1"]
    ended, _, err = runtime(tmp_path / "pi-1", *device, *arguments)
    assert ended == code
    assert words in err
    assert not (tmp_path / "pi-1" / "enrolling").exists()


@pytest.mark.parametrize(
    ("name", "device"),
    [("Pump-7.plant.example", "pump-7"), ("a_b", "a-b"), ("_x_", "x"), ("x" * 70, "x" * 63)],
)
def test_a_host_name_becomes_an_id(name, device):
    assert id_of_host(name) == device


@pytest.mark.parametrize("name", ["localhost", "localhost.localdomain", "", "...", "___"])
def test_a_host_name_that_says_nothing_is_refused(name):
    with pytest.raises(ConfigError, match="--device"):
        id_of_host(name)


def test_what_is_not_a_member_says_so(tmp_path):
    code, out, err = enrol(tmp_path / "nowhere", "--check")
    assert (code, out) == (1, "")
    assert err.startswith("not a member of a fleet: ")


def test_a_certificate_that_ended_is_said(runtime, server, tmp_path):
    home = tmp_path / "pi-1"
    assert runtime(home, "--device", "pi-1", typed=str(server.join))[0] == 0
    server.days = -1
    key = server.members["pi-1"]
    (home / "device.pem").write_bytes(server.issue("pi-1", key).pem)
    code, out, err = runtime(home, "--check")
    assert code == 1
    assert "Z (over)" in out
    assert f"the daemon renews it when it reaches {server.url}" in err


def test_a_certificate_of_another_key_is_none(runtime, server, tmp_path):
    home = tmp_path / "pi-1"
    assert runtime(home, "--device", "pi-1", typed=str(server.join))[0] == 0
    (home / "device.pem").write_bytes(server.issue("pi-1", STRANGER.public).pem)
    code, _, err = runtime(home, "--check")
    assert code == 1
    assert "is not for" in err


@pytest.mark.parametrize("file", ["mac.key", "device.key", "keyring.json", "device.pem"])
def test_a_membership_with_a_missing_file_is_none(runtime, server, tmp_path, file):
    home = tmp_path / "pi-1"
    assert runtime(home, "--device", "pi-1", typed=str(server.join))[0] == 0
    (home / file).unlink()
    code, _, err = runtime(home, "--check")
    assert code == 1
    assert file in err
