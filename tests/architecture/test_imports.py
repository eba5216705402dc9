"""Importing does nothing: no thread, no socket, no file written; and onnxruntime stays silent."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import edgepack_cli
import edgepack_contract
import edgepack_fleet
import edgepack_packager
import edgepack_runtime

PACKAGES = [edgepack_cli, edgepack_contract, edgepack_fleet, edgepack_packager, edgepack_runtime]
FRAMEWORKS = {
    f"edgepack_packager.sources.{name}"
    for name in ("exported", "from_tensorflow", "from_torch", "torch_export")
}
"""Loaded in the child that reads such models, and only where their framework is installed."""

NAMES = sorted(
    found.name
    for package in PACKAGES
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not found.name.endswith("__main__")
    and ".migrations" not in found.name
    and found.name not in FRAMEWORKS
)
PROBE = """
import importlib, os, socket, sys, threading
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
events = []
watched = {"socket.connect", "socket.bind", "subprocess.Popen", "os.remove", "os.rename"}
sys.addaudithook(lambda event, args: events.append((event, args)) if event in watched else None)
for name in sys.argv[1:]:
    before = threading.active_count()
    importlib.import_module(name)
    assert threading.active_count() == before, f"{name} started a thread"
    assert not events, f"{name} did {events}"
if "onnxruntime" in sys.modules:
    assert os.environ.get("ORT_DISABLE_TELEMETRY") == "1", "telemetry was on"
"""


@pytest.mark.parametrize("package", [package.__name__ for package in PACKAGES])
def test_importing_does_nothing(package):
    names = [name for name in NAMES if name.split(".")[0] == package]
    done = subprocess.run(
        # -B: what Python itself writes on a first import is not ours
        [sys.executable, "-B", "-W", "ignore", "-c", PROBE, *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


LIGHT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
heavy = {"numpy", "onnxruntime", "paho", "uvicorn", "onnx", "sklearn", "fastapi", "sqlalchemy"}
print(",".join(sorted(heavy & set(sys.modules))))
"""


def test_installing_a_bundle_needs_neither_numpy_nor_onnxruntime():
    names = [name for name in NAMES if name.startswith("edgepack_runtime.activation")]
    names += [
        "edgepack_runtime.sources.opening",
        "edgepack_runtime.storage.store",
        "edgepack_runtime.storage.fsio",
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *names], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_the_command_line_starts_light():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "edgepack_cli.main"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ""
