"""How many rows run at once: as many as fit a cache, found from shapes alone."""

import numpy as np
import onnx
import pytest
from tests.packager.models import cnn, mlp

from edgepack_packager.graphs.running import CHUNK_BYTES, CHUNK_ROWS, rows_at_once


def pictures(size):
    return {"x": np.zeros((3, 3, size, size), np.float32)}


def test_small_values_run_as_many_rows_as_ever():
    assert rows_at_once(mlp(), {"x": np.zeros((5, 8), np.float32)}) == CHUNK_ROWS


def test_large_values_run_a_few_rows_or_one():
    # the convolution's 32 channels of 12 x 12 floats are the largest
    assert rows_at_once(cnn(32), pictures(12)) == CHUNK_BYTES // (32 * 12 * 12 * 4)
    assert rows_at_once(cnn(4096), pictures(12)) == 1


@pytest.mark.parametrize("size", [12, 48])
def test_open_lengths_are_those_of_the_rows(size):
    model = cnn(32)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "length"
    assert rows_at_once(model, pictures(size)) == max(1, CHUNK_BYTES // (32 * size * size * 4))


def test_the_graph_and_its_weights_stay_as_they_are():
    model = mlp(hidden=4096)
    before = onnx.ModelProto()
    before.CopyFrom(model)
    rows_at_once(model, {"x": np.zeros((5, 8), np.float32)})
    assert model == before
