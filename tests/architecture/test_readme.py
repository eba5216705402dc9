"""The README tells the truth: its commands run as they stand there, its targets and files exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgepack_cli.demo.ports import free_port
from edgepack_cli.main import COMMANDS as COMMAND_NAMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PORT = "8000"
SCRIPT = """\
set -eu -o pipefail
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
{commands}
"""


def blocks(text):
    return re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(block):
    """The lines behind ``$ ``; a line that ends with a backslash goes on in the next."""
    joined = block.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


COMMANDS = [command for block in blocks(README) for command in commands(block)]
LOCAL = [command for command in COMMANDS if not command.startswith("make ")]


def script(lines):
    """One bash session; ``+ `` on stderr says which command is next."""
    told = [f"echo {'+ ' + line!r} >&2\n{line}" for line in lines]
    return SCRIPT.format(commands="\n".join(told))


def run(lines, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", script(lines)], cwd=folder, env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.e2e
def test_the_commands_run_in_order(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    # Port 8000 may be taken where the tests run; nothing else is changed.
    port = free_port()
    lines = [re.sub(rf"\b{PORT}\b", str(port), line) for line in LOCAL]
    asks = [line for line in lines if line.startswith("curl ")]
    if shutil.which("curl") is None:
        lines = [line for line in lines if line not in asks]
    done = run(lines, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "digits-1.0.0.edgepack").stat().st_size > 0
    if asks and shutil.which("curl") is None:
        pytest.skip(f"not run: {len(asks)} of the commands, because curl is not installed")


def test_a_command_that_fails_fails_the_session(tmp_path):
    done = run(["true", "sleep 600 &", "false | cat", "touch later"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["+ true", "+ sleep 600 &", "+ false | cat"]
    assert not (tmp_path / "later").exists()


def test_there_are_commands_of_every_part():
    assert len(LOCAL) >= 5
    told = " ".join(LOCAL)
    assert all(f"edgepack {part}" in told for part in ("keys", "build", "verify", "run"))


def test_named_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
    said = re.compile(r"(?:^|^\$ |`)make ([a-z-]+)", re.MULTILINE)
    named = {target for text in documents for target in said.findall(text)}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#:\s]+)\)", README)
    assert len(targets) >= 5
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_every_page_is_linked_from_another():
    documents = {path: path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
    for page in ROOT.glob("docs/*.md"):
        others = [text for path, text in documents.items() if path != page]
        link = re.compile(rf"\]\((?:docs/)?{re.escape(page.name)}[)#]")
        assert any(link.search(text) for text in others), page.name


def test_named_commands_and_extras_exist():
    named = set(re.findall(r"`edgepack ([a-z]+)", README))
    assert {"build", "predict", "targets"} <= named <= set(COMMAND_NAMES)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    install = README.split("## Install")[1].split("##")[0]
    told = set(re.findall(r"`'?\.?\[?([a-z]+)\]?'?`", install))
    assert {"boosting", "torch", "tensorflow", "mlflow"} <= told <= set(extras)
