"""``edgepack bench --on ssh://``: through a real OpenSSH server of this user's own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from world_bundles import tiny_bundle

from edgepack_cli.demo.ports import free_port
from edgepack_cli.main import COMMANDS
from edgepack_contract.benchmark import read_benchmark

pytestmark = pytest.mark.foreign("sshd", "ssh", "ssh-keygen")

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PidFile none
SetEnv TMPDIR={folder}/there
"""
CLIENT = """
Host *
  IdentityFile {folder}/client
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


def answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A server that lets this user's own key in: its folder and its address."""
    folder = tmp_path_factory.mktemp("board")
    for name in ("host", "client"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
        subprocess.run(key, check=True)
    (folder / "there").mkdir()
    port = free_port()
    (folder / "sshd.conf").write_text(SERVER.format(port=port, folder=folder))
    (folder / "ssh.conf").write_text(CLIENT.format(folder=folder))
    public = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {public}")
    # as root it wants this folder, which Debian's own service makes
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    path = shutil.which("sshd", path="/usr/sbin:/sbin:" + os.environ["PATH"])
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [path, "-D", "-e", "-f", folder / "sshd.conf"], stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        deadline = time.monotonic() + 30
        while not answers(port):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
        yield folder, f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "tiny.edgepack"
    tiny_bundle(path, "1.0.0")
    return path


def bench(board, bundle, *options, command=f"{sys.executable} -m edgepack_cli", config=None):
    folder, address = board
    words = ["bench", bundle, "--on", address, "--ssh-config", config or folder / "ssh.conf",
             "--remote-command", command, *options]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "edgepack_cli", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_bundle_is_measured_there_and_nothing_stays(board, bundle):
    assert "bench" in COMMANDS
    done = bench(board, bundle, "--json", "--rounds", "1", "--threads", "2")
    assert done.returncode == 0, done.stderr
    found = read_benchmark(done.stdout.encode())
    assert (found.name, found.rounds, found.threads) == ("tiny", 1, 2)
    assert found.variants[0].p50_ms > 0
    assert found.variants[0].rows == 8
    assert list((board[0] / "there").iterdir()) == []


def test_the_same_for_people(board, bundle):
    done = bench(board, bundle)
    assert done.returncode == 0, done.stderr
    assert "8 right" in done.stdout


def test_what_the_command_there_says_comes_back(board, bundle):
    done = bench(board, bundle, "--variant", "rpi5")
    assert (done.returncode, done.stdout) == (7, "")
    assert "there is no variant 'rpi5'" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no-such-edgepack", "has no 'no-such-edgepack'; install it there"),
        ("echo hello", "answers something else than figures"),
        ("/bin/false", "ended with code 1"),
    ],
)
def test_an_edgepack_that_is_missing_or_another_is_said(board, bundle, command, words):
    done = bench(board, bundle, command=command)
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr
    assert list((board[0] / "there").iterdir()) == []


def test_an_edgepack_without_the_command_is_too_old(board, bundle, tmp_path):
    old = tmp_path / "edgepack"
    old.write_text(
        "#!/bin/sh\ncat >/dev/null\necho \"Error: No such command 'bench'.\" >&2\nexit 2\n"
    )
    old.chmod(0o755)
    done = bench(board, bundle, command=str(old))
    assert done.returncode == 3
    assert "is too old to measure: Error: No such command" in done.stderr


def test_a_host_that_is_not_known_is_not_believed(board, bundle, tmp_path):
    stranger = tmp_path / "ssh.conf"
    text = (board[0] / "ssh.conf").read_text()
    stranger.write_text(text.replace(f"{board[0]}/known", "/dev/null"))
    done = bench(board, bundle, config=stranger)
    assert done.returncode == 3
    assert "its host key is not known" in done.stderr


def test_a_key_that_is_not_let_in(board, bundle, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "k"], check=True
    )
    stranger = tmp_path / "ssh.conf"
    text = (board[0] / "ssh.conf").read_text()
    stranger.write_text(text.replace(f"{board[0]}/client", str(tmp_path / "k")))
    done = bench(board, bundle, config=stranger)
    assert done.returncode == 3
    assert "accepts none of your keys" in done.stderr


def test_a_port_on_which_nobody_listens(board, bundle):
    done = bench((board[0], f"ssh://127.0.0.1:{free_port()}"), bundle)
    assert done.returncode == 3
    assert "no ssh server answers on that port" in done.stderr


def test_no_word_of_the_caller_is_a_command_there(board, bundle, tmp_path):
    """Options and the command are quoted on their way through the shell there."""
    mark = tmp_path / "mark"
    bench(board, bundle, "--variant", f"$(touch {mark})", "--json")
    bench(board, bundle, command=f"true; touch {mark}")
    assert not mark.exists()


def test_what_is_not_a_bundle_is_not_sent(board, tmp_path):
    (tmp_path / "x.edgepack").write_text("hello")
    done = bench(board, tmp_path / "x.edgepack")
    assert (done.returncode, done.stdout) == (6, "")
