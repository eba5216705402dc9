"""Run graphs over many rows with the session that serves them on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx.external_data_helper import convert_model_to_external_data, write_external_data_tensors

from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH, SessionOptions
from edgepack_contract.limits import MIB
from edgepack_packager.data.rows import Feeds
from edgepack_packager.graphs.clean import serialise
from edgepack_runtime.inference.session import Optimisation, Session, open_session

CHUNK_ROWS = 64
CHUNK_BYTES = 1 * MIB
"""Of the largest value of a run: beyond a core's cache, more rows at once take longer each."""

_SHAPE_BYTES = 1024
INLINE_BYTES = 1 * MIB
"""Larger weights go into a file beside the graph: it loads faster, with a third less memory."""

ONE_THREAD = SessionOptions(intra_op_threads=1, inter_op_threads=1)
"""For every figure that enters the bundle: more threads may add in another order."""


def save_model(model: onnx.ModelProto, folder: Path) -> None:
    """Write ``model`` as the files of a variant; the same graph gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.ByteSize() > INLINE_BYTES:
        split = onnx.ModelProto()
        split.CopyFrom(model)
        convert_model_to_external_data(
            split, all_tensors_to_one_file=True, location=MODEL_DATA_PATH, size_threshold=1024
        )
        model = write_external_data_tensors(split, str(folder))
    (folder / MODEL_PATH).write_bytes(serialise(model))


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a saved model by path."""
    return {
        path: folder / path for path in (MODEL_PATH, MODEL_DATA_PATH) if (folder / path).exists()
    }


def model_size(folder: Path) -> int:
    """Bytes of a saved model."""
    return sum(path.stat().st_size for path in model_files(folder).values())


def open_folder(
    folder: Path,
    *,
    options: SessionOptions = ONE_THREAD,
    optimisation: Optimisation = "all",
) -> Session:
    """Load a saved model.

    Raises:
        ModelLoadError: onnxruntime refuses it.
    """
    return open_session(folder / MODEL_PATH, options, optimisation=optimisation)


def run_rows(session: Session, feeds: Feeds, *, chunk: int = CHUNK_ROWS, threads: int = 1) -> Feeds:
    """The outputs of all rows, joined along the first dimension.

    Args:
        session: A model whose every output has one entry per row.
        feeds: One array per input.
        chunk: Rows of one run; models that fix their first dimension at 1 are run row by row.
        threads: Runs at once; what each computes does not depend on it.

    Raises:
        ModelRunError: onnxruntime failed.
    """
    if not is_batched(session):
        chunk = 1
    parts = list(chunks(feeds, chunk))
    if threads > 1 and len(parts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            runs = list(pool.map(session.run, parts))
    else:
        runs = [session.run(part) for part in parts]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def rows_at_once(model: onnx.ModelProto, feeds: Feeds) -> int:
    """Rows of one run that are quick, of rows shaped like ``feeds``; not more than 64.

    Found from the shapes of the values inside, so that it is the same on every machine.
    """
    outline = _outline(model)
    for item in outline.graph.input:
        sizes = [1, *feeds[item.name].shape[1:]] if item.name in feeds else []
        for dim, size in zip(item.type.tensor_type.shape.dim, sizes, strict=False):
            dim.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(outline)
    largest = max((_row_bytes(value) for value in inferred.graph.value_info), default=0)
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(largest, 1)))


def _outline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without its weights, apart from those that may be shapes."""
    outline = onnx.ModelProto(ir_version=model.ir_version)
    outline.opset_import.extend(model.opset_import)
    outline.functions.extend(model.functions)
    outline.graph.name = model.graph.name
    outline.graph.node.extend(model.graph.node)
    outline.graph.input.extend(model.graph.input)
    outline.graph.output.extend(model.graph.output)
    for weight in model.graph.initializer:
        known = outline.graph.initializer.add(name=weight.name, data_type=weight.data_type)
        if weight.ByteSize() > _SHAPE_BYTES:
            known.dims.extend(weight.dims)
        else:
            known.CopyFrom(weight)
    return outline


def _row_bytes(value: onnx.ValueInfoProto) -> int:
    """Bytes of a value, where a size is unknown at least; 0 when its type is."""
    tensor = value.type.tensor_type
    if tensor.elem_type in {onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING}:
        return 0
    item = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
    sizes: list[int] = [dim.dim_value or 1 for dim in tensor.shape.dim]
    return item * math.prod(sizes)


def is_batched(session: Session) -> bool:
    """Whether the graph leaves its first dimension open."""
    return all(info.shape and not isinstance(info.shape[0], int) for info in session.inputs)


def chunks(feeds: Feeds, size: int) -> Iterator[Feeds]:
    """The rows of ``feeds``, ``size`` at a time, in order."""
    total = len(next(iter(feeds.values())))
    for start in range(0, total, size):
        yield {name: array[start : start + size] for name, array in feeds.items()}


def take_rows(feeds: Feeds, indices: slice | list[int] | npt.NDArray[np.intp]) -> Feeds:
    """Some rows of every input."""
    return {name: array[indices] for name, array in feeds.items()}
