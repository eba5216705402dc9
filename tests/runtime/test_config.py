from __future__ import annotations

import pytest

from edgepack_contract.errors import ConfigError
from edgepack_runtime.config import load_config

GOOD = """\
device = "pi-1"
state_dir = "state"
[identity]
key = "device.key"
mac_key = "mac.key"
keyring = "keyring.json"
owner = "%s"
[mqtt]
host = "127.0.0.1"
""" % ("0" * 64)


def load(tmp_path, text=GOOD, environ=None):
    path = tmp_path / "device.toml"
    path.write_text(text)
    return load_config(path, environ or {})


def test_paths_are_relative_to_the_file(tmp_path):
    config = load(tmp_path)
    assert config.state_dir == str(tmp_path / "state")
    assert config.identity.key == str(tmp_path / "device.key")
    assert config.serve.unix_socket is None


def test_the_environment_wins(tmp_path):
    assert load(tmp_path, environ={"EDGEPACK_SERVE_PORT": "0"}).serve.port == 0


@pytest.mark.parametrize(
    ("old", "new", "words", "code"),
    [
        ('device = "pi-1"', 'device = "Pi 1"', "Pi 1", "bad-id"),
        ('state_dir = "state"', 'state_dri = "state"', "state_dri", "bad-config"),
        ("[mqtt]", "[telemetry]\nwindow_seconds = 0\n[mqtt]", "0.1", "bad-config"),
    ],
)
def test_refused(tmp_path, old, new, words, code):
    with pytest.raises(ConfigError, match=words) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert caught.value.code == code
