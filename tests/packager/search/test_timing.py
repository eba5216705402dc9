"""Which models are timed together."""

import pytest

from edgepack_packager.search.timing import groups


@pytest.mark.parametrize(
    ("sizes", "together"),
    [
        ({}, [[]]),
        ({"a": 4, "b": 6}, [["a", "b"]]),
        ({"a": 4, "b": 7, "c": 3}, [["a"], ["b", "c"]]),
        ({"a": 40, "b": 1}, [["a"], ["b"]]),
    ],
)
def test_models_are_loaded_together_up_to_a_size(sizes, together):
    assert groups(sizes, 10) == together
