"""``edgepack targets``: every device config that comes with edgepack."""

from __future__ import annotations

import json
from pathlib import Path

CONFIGS = {path.stem for path in (Path(__file__).parents[3] / "device-configs").glob("*.toml")}


def test_every_device_config_is_listed(cli):
    ended = cli("targets")
    assert (ended.code, ended.err) == (0, "")
    head, *rows = ended.out.splitlines()
    assert head.split() == ["TARGET", "ARCHITECTURE", "CORES", "MEMORY", "FIGURES"]
    assert [row.split()[0] for row in rows] == sorted(CONFIGS)
    assert "rpi5" in CONFIGS


def test_as_json(cli):
    shown = json.loads(cli("targets", "--json").out)
    assert set(shown) == CONFIGS
    assert shown["rpi5"]["architecture"] == "arm64"
