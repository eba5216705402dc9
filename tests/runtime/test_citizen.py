"""The daemon as a service: a real process, its service manager, its signals."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time

import pytest
from world_bundles import MODEL, ROW, tiny_bundle
from world_device import make_home
from world_process import Process, ask, run_to_end, running
from world_waiting import SECONDS, eventually

from edgepack_cli.demo.ports import free_port
from edgepack_runtime.config import load_config, to_toml

pytestmark = pytest.mark.e2e

BODY = json.dumps({"instances": [ROW]}).encode()
PREDICT = f"/v1/models/{MODEL}:predict"


class Manager:
    """Stands in for systemd: hears what the daemon says."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(SECONDS)
        self.socket.bind(str(path))
        self.environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}

    def hear(self, words):
        """Wait for a message with these words."""
        deadline, heard = time.monotonic() + SECONDS, []
        while time.monotonic() < deadline:
            heard.append(self.socket.recv(4096).decode())
            if words in heard[-1]:
                return heard[-1]
        raise AssertionError(f"{words!r} was not heard, but {heard[-5:]}")


@pytest.fixture
def manager(tmp_path):
    made = Manager(tmp_path / "notify")
    yield made
    made.socket.close()


@pytest.fixture
def home(tmp_path):
    made = tmp_path / "home"
    # nobody is there: a daemon serves without its broker
    make_home(made, "pi-1", free_port())
    return made


def configure(home, old, new):
    path = home / "device.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_its_service_manager_hears_of_its_whole_life(home, manager):
    log, config = home / "log", home / "device.toml"
    with running(log, "edgepack_cli", "run", "--config", config, **manager.environ) as daemon:
        assert "waits for the fleet" in manager.hear("READY=1")
        for _ in range(3):
            manager.hear("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in manager.hear("RELOADING=1")
        manager.hear("READY=1")
        daemon.process.send_signal(signal.SIGTERM)
        manager.hear("STOPPING=1")
        assert daemon.wait() == 0
        events = [json.loads(line)["event"] for line in daemon.said.splitlines()]
        assert events[-1] == "stopping"


def test_a_bundle_alone_is_a_service_too(tmp_path, manager):
    bundle = tmp_path / "a.edgepack"
    tiny_bundle(bundle, "1.0.0")
    arguments = ("run", "--bundle", bundle, "--port", 0)
    with running(tmp_path / "log", "edgepack_cli", *arguments, **manager.environ) as daemon:
        assert f"serves {MODEL} 1.0.0" in manager.hear("READY=1")
        for _ in range(3):
            manager.hear("WATCHDOG=1")
        assert daemon.end() == 0


def test_a_hangup_takes_up_what_can_change_and_names_the_rest(home):
    config = home / "device.toml"
    with running(home / "log", "edgepack_cli", "run", "--config", config) as daemon:
        daemon.port()
        configure(home, "window_seconds = 0.5", "window_seconds = 0.7")
        configure(home, "[mqtt]", '[log]\nlevel = "warning"\n[mqtt]\nkeepalive_seconds = 77')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_said("reload_waits")
        told = [json.loads(line) for line in daemon.said.splitlines()]
        assert told[-1]["settings"] == ["mqtt.keepalive_seconds"]
        # what was info is not told any more
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert '"stopping"' not in daemon.said


WRONG = {
    "is not TOML": ("[mqtt]", "[mqtt"),
    "colour": ("[mqtt]", "[mqtt]\ncolour = 1"),
    "window_seconds": ("window_seconds = 0.5", "window_seconds = 'soon'"),
    "device": ('device = "pi-1"', 'device = "../x"'),
    "declare": ("[mqtt]", "[serve]\n[mqtt]"),
}
"""What the refusal names, and what is put in place of what."""


def test_a_hangup_with_a_wrong_configuration_changes_nothing(home):
    config, good = home / "device.toml", (home / "device.toml").read_text()
    with running(home / "log", "edgepack_cli", "run", "--config", config) as daemon:
        daemon.port()
        for times, (words, (old, new)) in enumerate(WRONG.items(), 1):
            configure(home, old, new)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_said("reload_refused", times=times)
            line = [one for one in daemon.said.splitlines() if "reload_refused" in one][-1]
            assert words in json.loads(line)["message"]
            config.write_text(good)
        assert ask(home / "serve.sock", "GET", "/v2/health/live").status == 200
        assert daemon.end() == 0


def test_the_configuration_is_printed_as_it_comes_out(home, tmp_path):
    config = home / "device.toml"
    printed = run_to_end(
        "edgepack_cli", "run", "--config", config, "--print-config", EDGEPACK_MQTT_PORT="7"
    )
    assert printed.returncode == 0, printed.stderr
    assert "port = 7\n" in printed.stdout
    assert (home / "mac.key").read_text().strip() not in printed.stdout
    again = tmp_path / "again.toml"
    again.write_text(printed.stdout)
    assert to_toml(load_config(again, {})) == printed.stdout


class Load:
    """Callers that ask again and again on a kept connection until it is refused."""

    def __init__(self, port, number):
        self.answered, self.failed = 0, []
        self._port = port
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _ask(self):
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                # the kernel let it in, nobody else did
                return
            try:
                while connection.sock is not None:
                    connection.request("POST", PREDICT, BODY)
                    status = connection.getresponse()
                    status.read()
                    with self._lock:
                        self.answered += status.status == 200
                        if status.status != 200:
                            self.failed.append(status.status)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
            finally:
                connection.close()

    def join(self):
        for thread in self._threads:
            thread.join(SECONDS)


@pytest.fixture
def served(tmp_path):
    bundle = tmp_path / "a.edgepack"
    tiny_bundle(bundle, "1.0.0")
    arguments = ("run", "--bundle", bundle, "--port", 0)
    with running(tmp_path / "log", "edgepack_cli", *arguments) as daemon:
        yield daemon


def test_ended_under_load_it_fails_nobody_that_it_let_in(served):
    load = Load(served.port(), 6)
    eventually(lambda: load.answered > 200, lambda: load.answered)
    assert served.end() == 0
    load.join()
    assert load.failed == []


def test_asked_twice_it_cuts_what_is_in_flight(served):
    with socket.create_connection(("127.0.0.1", served.port()), SECONDS) as connection:
        head = f"POST {PREDICT} HTTP/1.1\r\nhost: d\r\ncontent-length: 99\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        served.process.send_signal(signal.SIGTERM)
        eventually(lambda: '"serving"' in served.said, lambda: served.said)
        assert served.process.poll() is None
        eventually(lambda: _refused(served), lambda: "a listener that is closed")
        served.process.send_signal(signal.SIGTERM)
        served.wait_said("hurried")
        assert served.wait() == 0


def _refused(process: Process) -> bool:
    try:
        socket.create_connection(("127.0.0.1", process.port()), SECONDS).close()
    except OSError:
        return True
    return False


def test_load_balancers_are_told_before_it_ends(tmp_path):
    home = tmp_path / "home"
    make_home(home, "pi-1", free_port())
    configure(home, "[serve]", "[serve]\ndrain_seconds = 60")
    configure(home, "[mqtt]", f'[ops]\nhost = "127.0.0.1"\nport = {free_port()}\n[mqtt]')
    ops = load_config(home / "device.toml", {}).ops.port
    factory = home / "factory"
    factory.mkdir()
    tiny_bundle(factory / f"{MODEL}.edgepack", "1.0.0")
    configure(home, "state_dir", 'factory = "factory"\nstate_dir')
    place = home / "serve.sock"
    with running(home / "log", "edgepack_cli", "run", "--config", home / "device.toml") as daemon:
        # no broker was ever there: what the device came with serves
        daemon.port()
        eventually(lambda: ask(ops, "GET", "/ready").status == 200, lambda: daemon.said)
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: ask(ops, "GET", "/ready").status == 503, lambda: daemon.said)
        assert ask(place, "GET", "/v2/health/ready").status == 503
        assert ask(place, "POST", PREDICT, BODY).status == 200
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
