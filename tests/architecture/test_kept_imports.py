"""What a daemon has imported stays in its memory: what it has no use for shall not be there."""

from __future__ import annotations

from world_bundles import MODEL, ROW, tiny_bundle
from world_device import make_home
from world_process import Process, ask
from world_waiting import eventually

MODULES = """
import sys
from edgepack_runtime import __main__

code = __main__.main()
print("imported", *sorted(sys.modules), flush=True)
sys.exit(code)
"""
NO_USE = {
    "cryptography.x509",  # without a certificate
    "edgepack_runtime.local.doctor",
    "edgepack_runtime.membership.command",
    "edgepack_runtime.membership.renewal",
    "edgepack_runtime.standalone",
    "fractions",  # of statistics
    "html",  # until somebody opens a page
    "multiprocessing.pool",
    "numpy.fft",
    "numpy.ma",
    "numpy.polynomial",
    "numpy.random",
    "numpy.testing",
    "onnxruntime.quantization",
    "onnxruntime.tools",
    "onnxruntime.transformers",
    "unittest",
}
OF_A_FLEET = {
    "edgepack_runtime.daemon",
    "edgepack_runtime.link",
    "paho",
    "sqlite3",
    "urllib.request",
}
FIRST = "factory = 'factory'\n"


class Telling(Process):
    """A daemon that says at its end what it has imported."""

    def __init__(self, log, *arguments):
        super().__init__(log, "edgepack_runtime", *arguments)

    def start(self):
        at = self._command.index("-m")
        self._command[at : at + 2] = ["-c", MODULES]
        super().start()


def imported_by(home, *arguments):
    """What a daemon has imported that answered a request and told of itself."""
    daemon = Telling(home / "log", *arguments)
    try:
        port = daemon.port()
        body = {"instances": [ROW]}
        path = f"/v1/models/{MODEL}:predict"
        eventually(lambda: ask(port, "POST", path, body).status == 200, lambda: daemon.said)
        assert ask(port, "GET", "/health").status == ask(port, "GET", "/metrics").status == 200
        assert daemon.end() == 0, daemon.said
    finally:
        daemon.kill()
    (told,) = [line for line in daemon.said.splitlines() if line.startswith("imported ")]
    return set(told.split())


def test_a_daemon_keeps_nothing_that_it_has_no_use_for(tmp_path):
    home = tmp_path / "pi-1"
    make_home(home, "pi-1", mqtt_port=9)
    (home / "factory").mkdir()
    tiny_bundle(home / "factory" / f"{MODEL}.edgepack", "1.0.0")
    config = home / "device.toml"
    config.write_text(FIRST + config.read_text())
    found = imported_by(home, "--config", config)
    assert "onnxruntime" in found
    assert found & NO_USE == set()


def test_who_serves_one_bundle_keeps_nothing_of_a_fleet(tmp_path):
    bundle = tmp_path / "tiny.edgepack"
    tiny_bundle(bundle, "1.0.0")
    found = imported_by(tmp_path, "--bundle", bundle, "--port", "0")
    assert "onnxruntime" in found
    assert found & ((NO_USE - {"edgepack_runtime.standalone"}) | OF_A_FLEET) == set()
