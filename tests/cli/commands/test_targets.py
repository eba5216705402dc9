"""``edgepack targets``: what there is to build for, and what this machine is."""

from __future__ import annotations

import json
from pathlib import Path

from edgepack_packager.targets import load_target, this_hardware

CONFIGS = {path.stem for path in (Path(__file__).parents[3] / "device-configs").glob("*.toml")}


def test_every_device_config_is_listed(cli):
    ended = cli("targets")
    assert (ended.code, ended.err) == (0, "")
    head, *rows = ended.out.splitlines()
    assert head.split() == ["TARGET", "ARCHITECTURE", "CORES", "MEMORY", "FIGURES"]
    assert [row.split()[0] for row in rows] == sorted(CONFIGS)
    assert "rpi5" in CONFIGS
    assert cli("targets", "list").out == ended.out


def test_as_json(cli):
    shown = json.loads(cli("targets", "--json").out)
    assert set(shown) == CONFIGS
    assert shown["rpi5"]["architecture"] == "arm64"


def test_one_is_shown_as_its_file_says(cli):
    ended = cli("targets", "show", "rpi5")
    assert 'model = "Raspberry Pi 5"' in ended.out
    assert ended.out.splitlines()[-1] == "# this machine is none of them"
    shown = json.loads(cli("targets", "show", "rpi5", "--json").out)
    assert (shown["target"]["name"], shown["this_machine"]) == ("rpi5", False)
    refused = cli("targets", "show", "toaster")
    assert (refused.code, "rpi5" in refused.err) == (3, True)


def test_this_machine_is_what_is_detected(cli, tmp_path):
    path = tmp_path / "mine.toml"
    ended = cli("targets", "detect", "-o", path)
    assert (ended.code, ended.err) == (0, "")
    assert load_target(str(path)).is_this(this_hardware())
    assert cli("targets", "show", path).out.splitlines()[-1] == "# this machine is one of them"
    again = cli("targets", "detect", "-o", path)
    assert (again.code, "--overwrite" in again.err) == (3, True)
    assert cli("targets", "detect", "-o", path, "--overwrite").code == 0
    assert 'name = "mine"' in cli("targets", "detect", "--name", "mine").out


def test_a_target_has_its_files_name(cli, tmp_path):
    assert cli("targets", "detect", "-o", tmp_path / "a.toml", "--name", "b").code == 2
    assert cli("targets", "detect", "-o", tmp_path / "a.json").code == 2
