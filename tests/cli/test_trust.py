"""Whom a command trusts: two options that belong together."""

from __future__ import annotations

import click
import pytest

from edgepack_cli.trust import read_keyring
from edgepack_contract.errors import UntrustedDocumentError
from edgepack_contract.limits import LIMITS


def test_neither_option_is_no_keyring():
    assert read_keyring(None, None) is None


@pytest.mark.parametrize("given", [0, 1])
def test_one_without_the_other_is_refused(keys, given):
    pair = [keys[0] / "keyring.json", keys[1]]
    pair[given] = None
    with pytest.raises(click.UsageError, match="belong together"):
        read_keyring(*pair)


def test_the_owner_is_pinned(keys):
    folder, owner = keys
    keyring = read_keyring(folder / "keyring.json", owner)
    assert keyring is not None
    assert keyring.version == 1
    with pytest.raises(UntrustedDocumentError):
        read_keyring(folder / "keyring.json", "0" * 64)


def test_a_keyring_is_read_within_its_limit(cli, keys, tmp_path):
    path = tmp_path / "large.json"
    path.write_bytes(b" " * (LIMITS.keyring_bytes + 1))
    ended = cli("verify", path, "--keyring", path, "--owner", keys[1])
    assert ended.code == 6
    assert ended.err.count("\n") == 1
