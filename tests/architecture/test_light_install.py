"""What a device installs: ``edgepack[runtime]`` alone, in an environment of its own."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

import pytest
from world_bundles import tiny_bundle

from edgepack_contract.keyring import make_keyring
from edgepack_contract.keys import PrivateKey, write_private_key

pytestmark = pytest.mark.xdist_group("light-install")  # one environment for all of them

ROOT = Path(__file__).parents[2]
ABSENT = ["onnx", "skl2onnx", "sklearn", "scipy", "pandas", "pyarrow", "fastapi", "pydantic",
          "sqlalchemy", "alembic", "rich", "skops", "sympy", "amqtt"]  # fmt: skip


def pip(home):
    """Our own pip, for another environment: to install one there takes seconds."""
    return [sys.executable, "-m", "pip", "--python", home / "bin" / "python"]


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    home = tmp_path_factory.mktemp("light")
    venv.create(home)
    install = [*pip(home), "install", "--quiet", "--disable-pip-version-check"]
    requirements = ROOT / "requirements" / "runtime.txt"
    subprocess.run([*install, "--require-hashes", "-r", requirements], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", ROOT], check=True)
    return home


def test_heavy_packages_are_absent(light):
    code = f"""
import importlib.util
print([name for name in {ABSENT!r} if importlib.util.find_spec(name) is not None])
"""
    run = [light / "bin" / "python", "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_the_requirements_are_those_of_the_extra(light):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["runtime"]]
    assert subprocess.run([*pip(light), "check"], capture_output=True, check=False).returncode == 0
    code = "import importlib.metadata as m, sys; [m.version(name) for name in sys.argv[1:]]"
    names = [one.split(">")[0] for one in wanted]
    subprocess.run([light / "bin" / "python", "-c", code, *names], check=True, cwd="/")


def test_what_needs_more_says_which_extra(light):
    run = [light / "bin" / "edgepack", "fleet", "serve", "--help"]
    help_text = subprocess.run(run, capture_output=True, text=True, check=False, cwd="/")
    assert help_text.returncode == 0
    run = [light / "bin" / "edgepack", "build", "--help"]
    refused = subprocess.run(run, capture_output=True, text=True, check=False, cwd="/")
    assert refused.returncode == 1
    assert "edgepack[packager]" in refused.stderr


DEVICE = """
device = "pi-1"
state_dir = "state"
[identity]
key = "device.key"
mac_key = "mac.key"
keyring = "keyring.json"
owner = "{owner}"
[serve]
port = 0
unix_socket = "s"
[mqtt]
host = "127.0.0.1"
port = 9
"""


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def answers(path, url):
    connection = Unix(path)
    try:
        connection.request("GET", url)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def starts_and_stops(light, folder, *arguments, url):
    process = subprocess.Popen([light / "bin" / "edgepack", "run", *arguments], cwd=folder)
    deadline = time.monotonic() + 60
    while answers(folder / "s", url) != 200:
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_the_daemon_starts_and_stops_even_without_a_broker(light, tmp_path):
    owner = PrivateKey.generate()
    write_private_key(tmp_path / "device.key", PrivateKey.generate())
    (tmp_path / "mac.key").touch(0o600)
    (tmp_path / "mac.key").write_text("ab" * 32)
    ring = make_keyring(owner, version=1, epoch=1, publishers=[], fleets=[])
    (tmp_path / "keyring.json").write_bytes(ring)
    (tmp_path / "device.toml").write_text(DEVICE.format(owner=owner.public.fingerprint))
    starts_and_stops(light, tmp_path, "--config", "device.toml", url="/v2/health/live")


def test_a_bundle_is_served(light, tmp_path):
    tiny_bundle(tmp_path / "tiny.edgepack", "1.0.0")
    arguments = ("--bundle", "tiny.edgepack", "--port", "0", "--unix-socket", "s")
    starts_and_stops(light, tmp_path, *arguments, url="/v2/health/ready")


@pytest.mark.parametrize(
    "command", [("selftest", "tiny.edgepack"), ("bench", "tiny.edgepack", "--json"),
                ("targets", "detect")],
)  # fmt: skip
def test_a_board_tries_bundles_and_says_what_it_is(light, tmp_path, command):
    tiny_bundle(tmp_path / "tiny.edgepack", "1.0.0")
    run = [light / "bin" / "edgepack", *command]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


MOST_BYTES = 175 * 2**20
BUILD_ONLY = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "hatchling", "editables",
              "pathspec", "pluggy", "tomlkit", "trove_classifiers")  # fmt: skip
"""What installs, and what builds the package; the image has neither."""


def test_it_takes_no_more_of_the_disk_than_it_may(light):
    packages = next(light.glob("lib/python3*/site-packages"))
    installed = [path for path in packages.iterdir() if not path.name.startswith(BUILD_ONLY)]
    files = [file for path in installed for file in (path, *path.rglob("*")) if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
