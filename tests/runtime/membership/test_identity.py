from __future__ import annotations

import pytest

from edgepack_contract.errors import ConfigError, SigningKeyError
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_runtime.config import IdentityConfig, MqttConfig, RuntimeConfig
from edgepack_runtime.membership.identity import load_identity


@pytest.fixture
def enrolled(tmp_path):
    owner, device = PrivateKey.generate(), PrivateKey.generate()
    write_private_key(tmp_path / "device.key", device)
    (tmp_path / "mac.key").write_text("ab" * 32 + "\n")
    identity = IdentityConfig(
        key=str(tmp_path / "device.key"),
        mac_key=str(tmp_path / "mac.key"),
        keyring=str(tmp_path / "keyring.json"),
        owner=owner.public.fingerprint,
    )
    config = RuntimeConfig(
        device="pi-1", state_dir="s", identity=identity, mqtt=MqttConfig(host="localhost")
    )
    return config, device


def test_everything_is_checked_and_loaded(enrolled):
    config, device = enrolled
    found = load_identity(config)
    assert found.identity.enrolment == device.public.fingerprint
    assert found.mac_key == b"\xab" * 32


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("mac.key", "zz", ConfigError),
        ("mac.key", "abcd", ConfigError),
        ("device.key", "junk", SigningKeyError),
    ],
)
def test_what_cannot_be_used_is_named(enrolled, tmp_path, file, content, error):
    (tmp_path / file).write_text(content)
    with pytest.raises(error):
        load_identity(enrolled[0])


def test_a_missing_file_is_named(enrolled, tmp_path):
    (tmp_path / "mac.key").unlink()
    with pytest.raises(ConfigError, match=r"mac\.key"):
        load_identity(enrolled[0])
