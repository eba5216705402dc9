"""docs/production.md runs: every command of the page, in its order, against a real Mosquitto."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack_cli.demo.ports import free_port

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OPTIONS = """\
stages = ["100%"]
soak_seconds = 0.5
probation_seconds = 1.0
[gates.non_finite]
enabled = false
"""
SCRIPT = """\
set -eu -o pipefail
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
served() {{
    for _ in $(seq 300); do
        (: < /dev/tcp/127.0.0.1/$1) 2>/dev/null && return
        sleep 0.1
    done
}}
{commands}
"""


def commands(http: int, mqtt: int) -> str:
    """The page's commands with this machine's address, waiting where a person would see."""
    text = "\necho '+ next' >&2\n".join(BLOCKS)
    text = re.sub(r"(fleet|broker)\.example", "127.0.0.1", text)
    text = text.replace("8443", str(http)).replace("8883", str(mqtt)).replace("8101", "0")
    text = text.replace("mosquitto -c", "mosquitto_conf\nmosquitto -c")
    text = text.replace("edgepack login", f"served {http}; served {mqtt}\nedgepack login")
    conf = (
        "mosquitto_conf() { printf 'user %s\\npid_file %s/mosquitto.pid\\n' $(id -un) $PWD; "
        "cat broker/edgepack.conf; } > mosquitto.conf\n"
    )
    return conf + text


@pytest.mark.foreign("mosquitto")
def test_the_commands_run_in_order(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_digits.py")], cwd=tmp_path, check=True
    )
    (tmp_path / "options.toml").write_text(OPTIONS)
    script = SCRIPT.format(commands=commands(free_port(), free_port()))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    ended = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=300, check=False,
        env={**os.environ, "PATH": path, "XDG_CONFIG_HOME": str(tmp_path / "config")},
    )  # fmt: skip
    said = f"{ended.stdout}\n{ended.stderr}"
    assert ended.returncode == 0, said[-6000:]
    assert "Traceback" not in said
    assert "certificate  until" in said
    assert "is completed" in said
    assert re.search(r"^gateway-1 +revoked ", ended.stdout, re.MULTILINE), ended.stdout
    assert "are whole" in said
    assert (tmp_path / "head.txt").read_text().strip()
