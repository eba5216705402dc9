from __future__ import annotations

import pytest

from edgepack_contract.errors import ConfigError
from edgepack_contract.small_files import read_configured, read_small


@pytest.mark.parametrize(("size", "read"), [(0, 0), (7, 7), (8, 8), (9, 9), (10_000, 9)])
def test_one_byte_more_tells_of_a_file_that_is_too_large(tmp_path, size, read):
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert len(read_small(path, 8)) == read
    assert len(read_configured(path, 8, code="any")) == read


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path):
    path = tmp_path / "absent"
    with pytest.raises(FileNotFoundError):
        read_small(path, 8)
    with pytest.raises(ConfigError, match=f"cannot read {path}: No such file") as caught:
        read_configured(path, 8, code="no-keyring")
    assert caught.value.code == "no-keyring"
