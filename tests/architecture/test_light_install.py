"""What a device installs: ``edgepack[runtime]`` alone, in an environment of its own."""

from __future__ import annotations

import http.client
import os
import re
import shutil
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


def test_a_daemon_looks_nothing_up_in_the_metadata_of_packages(light):
    # here, for in the environment of the tests paho finds dnspython, which does
    code = """
import sys
import edgepack_runtime.__main__, edgepack_runtime.process, edgepack_runtime.standalone
print([name for name in ("dns", "importlib.metadata", "zipfile", "csv") if name in sys.modules])
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
    run = [light / "bin" / "python", "-m", "edgepack_cli", "run", *arguments]
    process = subprocess.Popen(run, cwd=folder)
    deadline = time.monotonic() + 60
    while answers(folder / "s", url) != 200:
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def enrolled(folder):
    """What enrolment leaves in the folder of a device."""
    owner = PrivateKey.generate()
    write_private_key(folder / "device.key", PrivateKey.generate())
    (folder / "mac.key").touch(0o600)
    (folder / "mac.key").write_text("ab" * 32)
    ring = make_keyring(owner, version=1, epoch=1, publishers=[], fleets=[])
    (folder / "keyring.json").write_bytes(ring)
    (folder / "device.toml").write_text(DEVICE.format(owner=owner.public.fingerprint))


def test_the_daemon_starts_and_stops_even_without_a_broker(light, tmp_path):
    enrolled(tmp_path)
    starts_and_stops(light, tmp_path, "--config", "device.toml", url="/v2/health/live")


def test_a_bundle_is_served(light, tmp_path):
    tiny_bundle(tmp_path / "tiny.edgepack", "1.0.0")
    arguments = ("--bundle", "tiny.edgepack", "--port", "0", "--unix-socket", "s")
    starts_and_stops(light, tmp_path, *arguments, url="/v2/health/ready")


MOST_BYTES, MOST_BYTES_OF_IMAGE = 175 * 2**20, 150 * 2**20
BUILD_ONLY = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "hatchling", "editables",
              "pathspec", "pluggy", "tomlkit", "trove_classifiers")  # fmt: skip
"""What installs, and what builds the package; the image has neither."""


def size_of(home):
    packages = next(home.glob("lib/python3*/site-packages"))
    installed = [path for path in packages.iterdir() if not path.name.startswith(BUILD_ONLY)]
    files = [file for path in installed for file in (path, *path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)


def test_it_takes_no_more_of_the_disk_than_it_may(light):
    assert size_of(light) <= MOST_BYTES


@pytest.fixture(scope="module")
def image(light, tmp_path_factory):
    """The same without what the Dockerfile takes away, by the Dockerfile's own command."""
    home = tmp_path_factory.mktemp("image") / "edgepack"
    shutil.copytree(light, home, symlinks=True, copy_function=os.link)
    lines = (ROOT / "Dockerfile.arm64").read_text().replace("\\\n", "")
    (command,) = re.findall(
        r"^RUN cd /opt/edgepack/(lib/python3\*/site-packages .*)$", lines, re.MULTILINE
    )
    subprocess.run(["sh", "-c", f"cd {command}"], check=True, cwd=home)
    return home


def test_the_image_takes_less(image):
    assert size_of(image) <= MOST_BYTES_OF_IMAGE


def test_a_daemon_misses_nothing_that_the_image_leaves_out(image, tmp_path):
    enrolled(tmp_path)
    starts_and_stops(image, tmp_path, "--config", "device.toml", url="/v2/health/live")


@pytest.mark.parametrize("place", ["light", "image"])
@pytest.mark.parametrize(
    "command", [("selftest", "tiny.edgepack"), ("bench", "tiny.edgepack", "--json"),
                ("targets", "detect")],
)  # fmt: skip
def test_a_board_tries_bundles_and_says_what_it_is(request, place, command, tmp_path):
    tiny_bundle(tmp_path / "tiny.edgepack", "1.0.0")
    python = request.getfixturevalue(place) / "bin" / "python"
    run = [python, "-m", "edgepack_cli", *command]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_image_is_built_from_no_more_than_it_copies():
    copied = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile.arm64").read_text(), re.MULTILINE
    )
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(let_in) == sorted(name for line in copied for name in line.split())
