"""What a device installs: ``edgepack[runtime]`` alone, in an environment of its own."""

from __future__ import annotations

import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = ["onnx", "skl2onnx", "sklearn", "scipy", "pandas", "pyarrow", "fastapi", "pydantic",
          "sqlalchemy", "alembic", "rich", "skops", "sympy", "amqtt"]  # fmt: skip


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    home = tmp_path_factory.mktemp("light")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
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
    run = [light / "bin" / "python", "-m", "pip", "check"]
    assert subprocess.run(run, capture_output=True, check=False).returncode == 0
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
