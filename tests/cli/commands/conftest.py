"""Bundles for commands: signed by the keys of the test, or not at all."""

from __future__ import annotations

import pytest
from bundle_samples import one_variant

from edgepack_contract.keys import read_private_key
from edgepack_contract.layout import write_bundle


@pytest.fixture
def bundle(tmp_path):
    """A bundle that nobody signed."""
    path = tmp_path / "unsigned.edgepack"
    write_bundle(path, one_variant(), signer=None, evidence={"report.json": b"{}"})
    return path


@pytest.fixture
def signed(tmp_path, keys):
    """A bundle that the publisher signed."""
    folder, _ = keys
    path = tmp_path / "signed.edgepack"
    key = read_private_key(folder / "publisher.key")
    write_bundle(path, one_variant(), signer=key, evidence={"report.json": b"{}"})
    return path


@pytest.fixture
def trust(keys):
    """The options that say whom to trust."""
    folder, owner = keys
    return ("--keyring", folder / "keyring.json", "--owner", owner)
