from __future__ import annotations

import msgspec
import pytest

from edgepack_contract.errors import MalformedBundleError
from edgepack_runtime.inference.errors import ModelLoadError
from edgepack_runtime.inference.variant import open_variant, read_description


def changed(description, side, **changes):
    first, *rest = getattr(description, side)
    return msgspec.structs.replace(
        description, **{side: [msgspec.structs.replace(first, **changes), *rest]}
    )


def test_a_variant_opens(make_variant):
    folder = make_variant("v", version="2.0.0")
    description = read_description(folder)
    assert description.version == "2.0.0"
    assert [info.name for info in open_variant(folder, description).inputs] == ["x"]


@pytest.mark.parametrize(
    ("side", "changes"),
    [
        ("inputs", {"name": "y"}),
        ("inputs", {"dtype": "float64"}),
        ("inputs", {"shape": ["batch", 5], "features": None}),
        ("inputs", {"shape": ["batch"], "features": None}),
        ("outputs", {"name": "other"}),
        ("outputs", {"dtype": "int32"}),
    ],
)
def test_a_graph_that_is_not_the_described_one_is_refused(make_variant, side, changes):
    folder = make_variant("v")
    description = changed(read_description(folder), side, **changes)
    with pytest.raises(ModelLoadError, match="description"):
        open_variant(folder, description)


def test_a_bad_description_is_malformed(make_variant):
    folder = make_variant("v")
    (folder / "edgepack.json").write_bytes(b"{}")
    with pytest.raises(MalformedBundleError):
        read_description(folder)
