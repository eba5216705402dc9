from __future__ import annotations

import pytest

from edgepack_contract.errors import ConfigError
from edgepack_contract.names import check_id, check_version, is_version


@pytest.mark.parametrize("text", ["0.0.0", "1.4.0", "10.20.30-rc.1", "1.0.0-alpha-2"])
def test_versions(text):
    assert check_version(text) == text


@pytest.mark.parametrize(
    "text", ["", "1", "1.0", "01.0.0", "1.0.0\n", "1.0.0+b", "v1.0.0", "1.0.0-"]
)
def test_what_is_no_version(text):
    assert not is_version(text)
    with pytest.raises(ConfigError, match="semantic version"):
        check_version(text)


def test_a_bad_id_is_named_with_what_it_is_for():
    with pytest.raises(ConfigError, match="device 'Pi 1'"):
        check_id("Pi 1", what="device")
