"""The unit file as systemd reads it, and what the daemon asks of the kernel."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from broker_process import BROKER
from world_bundles import MODEL, ROW, tiny_bundle
from world_device import make_home
from world_process import ask
from world_waiting import eventually

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "edgepack.service"
MOST_EXPOSED = 2.0
"""Of 10, by systemd's own count."""

ALONE = """\
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Has loopback, in a network namespace of its own without a route, and becomes a command."""

BESIDE_A_BROKER = f"""\
import os, subprocess, sys
subprocess.Popen([sys.executable, {str(BROKER)!r}, sys.argv[1]])
os.execvp(sys.argv[2], sys.argv[2:])
"""

ASKS_ELSEWHERE = """\
import time
import onnxruntime
time.sleep(60)
"""


def analyze(*arguments):
    ended = subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False,
        timeout=60, env=os.environ | {"SYSTEMD_COLORS": "0"},
    )  # fmt: skip
    return ended.stdout + ended.stderr


@pytest.mark.foreign("systemd-analyze")
def test_systemd_takes_the_unit():
    said = analyze("verify", UNIT)
    # of systemd 254; and our program is not where it will be
    expected = (
        "RestartSteps",
        "RestartMaxDelaySec",
        "/opt/edgepack/bin/edgepack is not executable",
    )
    about_it = [line for line in said.splitlines() if "edgepack" in line]
    assert [line for line in about_it if not any(word in line for word in expected)] == []


@pytest.mark.foreign("systemd-analyze")
def test_the_unit_leaves_little_to_whoever_breaks_in():
    said = analyze("--offline=true", "security", UNIT)
    found = re.search(r"Overall exposure level for edgepack.service: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= MOST_EXPOSED, said


@contextlib.contextmanager
def traced(trace, *command):
    """A process in a network of its own, every call of which is in ``trace``."""
    # whoever is not root may have a network of its own in a user namespace
    rights = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    told = [
        "unshare", "--net", *rights, "strace", "-f", "-qq", "-e", "signal=none", "-o", str(trace),
        sys.executable, "-c", ALONE, *map(str, command),
    ]  # fmt: skip
    # onnxruntime keeps quiet on what looks like a build server, and keeps notes in its user's home
    plain = {"PATH": os.environ["PATH"], "HOME": str(trace.parent), "LANG": "C.UTF-8"}
    with subprocess.Popen(
        told, env=plain, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def lives(unix):
    try:
        return ask(unix, "GET", "/v2/health/live").status == 200
    except OSError:
        return False


def spoken_to(trace):
    """Every address that was connected or sent to, but loopback and this machine's sockets."""
    text = trace.read_text(errors="replace") if trace.exists() else ""
    calls = re.findall(r"(?:connect|sendto|sendmsg|sendmmsg)\(.*", text)
    found = re.findall(r'inet_(?:addr|pton)\((?:AF_INET6, )?"([^"]+)"', "\n".join(calls))
    return {one for one in found if not one.startswith("127.") and one != "::1"}


@pytest.mark.foreign("strace")
@pytest.mark.foreign("unshare")
def test_it_speaks_to_nobody(tmp_path):
    """onnxruntime without our variable does look for its vendor: this test can fail."""
    bundle, unix = tmp_path / "a.edgepack", tmp_path / "s"
    tiny_bundle(bundle, "1.0.0")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    daemon = (sys.executable, "-m", "edgepack_cli", "run", "--bundle", bundle, "--port", 0,
              "--unix-socket", unix)  # fmt: skip
    with traced(ours, *daemon):
        eventually(lambda: lives(unix), lambda: "a daemon that serves")
        for _ in range(20):
            body = {"instances": [ROW]}
            assert ask(unix, "POST", f"/v1/models/{MODEL}:predict", body).status == 200
        with traced(theirs, sys.executable, "-c", ASKS_ELSEWHERE):
            eventually(lambda: spoken_to(theirs), lambda: "onnxruntime as it comes")
        assert ask(unix, "GET", "/health").status == 200
    assert spoken_to(ours) == set()
    text = ours.read_text(errors="replace")
    # MemoryDenyWriteExecute
    assert not re.search(r"mmap\([^)]*PROT_WRITE\|PROT_EXEC|mprotect\([^)]*PROT_EXEC", text)


@pytest.mark.foreign("strace")
@pytest.mark.foreign("unshare")
def test_a_device_that_installs_speaks_to_its_broker_only(tmp_path):
    home, trace, port = tmp_path / "home", tmp_path / "trace", 1883
    make_home(home, "pi-1", port)
    (home / "factory").mkdir()
    tiny_bundle(home / "factory" / f"{MODEL}.edgepack", "1.0.0")
    config, unix = home / "device.toml", home / "serve.sock"
    config.write_text('factory = "factory"\n' + config.read_text())
    daemon = (sys.executable, "-m", "edgepack_cli", "run", "--config", config)
    with traced(trace, sys.executable, "-c", BESIDE_A_BROKER, port, *daemon):

        def installed():
            told = ask(unix, "GET", "/health").json if lives(unix) else {}
            return told.get("slots", {}).get(MODEL, {}).get("phase") == "succeeded"

        eventually(installed, lambda: "an installed bundle")
        assert ask(unix, "POST", f"/v1/models/{MODEL}:predict", {"instances": [ROW]}).status == 200
        connected = re.compile(rf"connect\(.*htons\({port}\)")
        eventually(lambda: connected.search(trace.read_text(errors="replace")), "the broker")
    assert spoken_to(trace) == set()


@pytest.mark.foreign("strace")
@pytest.mark.foreign("systemd-analyze")
def test_every_call_of_a_daemon_is_in_the_filter(tmp_path):
    bundle, unix, trace = tmp_path / "a.edgepack", tmp_path / "s", tmp_path / "trace"
    tiny_bundle(bundle, "1.0.0")
    daemon = (sys.executable, "-m", "edgepack_cli", "run", "--bundle", bundle, "--port", 0,
              "--unix-socket", unix)  # fmt: skip
    with traced(trace, *daemon):
        eventually(lambda: lives(unix), lambda: "a daemon that serves")
        assert ask(unix, "POST", f"/v1/models/{MODEL}:predict", {"instances": [ROW]}).status == 200
    used = set(re.findall(r"^\d+ +([a-z0-9_]+)\(", trace.read_text(errors="replace"), re.MULTILINE))
    assert "futex" in used
    assert used <= calls_of("@system-service") - calls_of("@privileged")


def calls_of(group):
    """The system calls of one of systemd's groups."""
    found = set()
    for line in map(str.strip, analyze("syscall-filter", group).splitlines()):
        if line.startswith("@") and line != group:
            found |= calls_of(line)
        elif re.fullmatch(r"[a-z0-9_]+", line):
            found.add(line)
    return found
