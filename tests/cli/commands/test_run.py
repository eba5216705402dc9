"""``edgepack run`` and ``edgepack fleet``: the process becomes the daemon or the service."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


class BecameError(Exception):
    """The process would be another program now."""


@pytest.fixture
def became(monkeypatch):
    """What the process would have become."""
    programs = []

    def execv(program, arguments):
        programs.append((program, arguments))
        raise BecameError

    monkeypatch.setattr(os, "execv", execv)
    return programs


def becomes(cli, became, words):
    with pytest.raises(BecameError):
        cli(*words)
    ((program, (argument, flag, *rest)),) = became
    assert (program, argument, flag) == (sys.executable, sys.executable, "-m")
    return rest


def test_a_device(cli, became, tmp_path):
    config = tmp_path / "device.toml"
    config.touch()
    words = ["run", "--config", config]
    assert becomes(cli, became, words) == ["edgepack_runtime", "--config", str(config)]


def test_one_bundle(cli, became, bundle, trust):
    words = ["run", "--bundle", bundle, "--port", "0", "--unix-socket", "s", *trust]
    assert becomes(cli, became, words) == [
        "edgepack_runtime", "--bundle", str(bundle), "--host", "127.0.0.1", "--port", "0",
        "--unix-socket", "s", *map(str, trust),
    ]  # fmt: skip


def test_one_bundle_off_loopback(cli, became, tmp_path):
    for name in ("bundle", "pem", "key", "token"):
        (tmp_path / name).touch()
    options = [
        "--tls-certificate", tmp_path / "pem", "--tls-key", tmp_path / "key",
        "--token-file", tmp_path / "token", "--ops-host", "0.0.0.0", "--ops-port", "0",
    ]  # fmt: skip
    rest = becomes(cli, became, ["run", "--bundle", tmp_path / "bundle", *options])
    assert rest[-10:] == list(map(str, options))


def test_a_port_of_operations_needs_a_host(cli, became, tmp_path):
    (tmp_path / "bundle").touch()
    ended = cli("run", "--bundle", tmp_path / "bundle", "--ops-port", "0")
    assert (ended.code, became) == (2, [])
    assert "--ops-port needs --ops-host" in ended.err


@pytest.mark.parametrize("both", [True, False])
def test_a_config_or_a_bundle(cli, became, bundle, both):
    ended = cli("run", *(["--config", bundle, "--bundle", bundle] if both else []))
    assert ended.code == 2
    assert "either --config or --bundle" in ended.err
    assert became == []


def test_trust_options_belong_together(cli, became, bundle, trust):
    ended = cli("run", "--bundle", bundle, *trust[:2])
    assert ended.code == 2
    assert "belong together" in ended.err
    assert became == []


def test_the_fleet_service(cli, became, tmp_path):
    config = tmp_path / "fleet.toml"
    config.touch()
    words = ["fleet", "serve", "--config", config]
    assert becomes(cli, became, words) == ["edgepack_fleet", "--config", str(config)]


def test_a_token(cli, became, tmp_path):
    config = tmp_path / "fleet.toml"
    config.touch()
    words = ["fleet", "token", "--config", config, "--name", "ci", "--role", "publisher"]
    assert becomes(cli, became, words) == [
        "edgepack_fleet", "token", "--config", str(config), "--name", "ci",
        "--role", "publisher", "--days", "90",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [("run",), ("fleet", "serve")])
def test_a_misspelt_setting_is_exit_code_78(tmp_path, words):
    config = tmp_path / "config.toml"
    config.write_text('state_dri = "x"\n')
    run = [sys.executable, "-m", "edgepack_cli", *words, "--config", config]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "state_dri" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_altered_bundle_is_not_served(tmp_path, signed, trust, altered):
    path = altered(signed, tmp_path / "altered.edgepack")
    run = [sys.executable, "-m", "edgepack_cli", "run", "--bundle", path, "--port", "0", *trust]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    assert "sha256" in done.stderr
