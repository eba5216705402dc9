"""What a user gets without edgepack: plain ONNX, and onnxruntime's quantization by default."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgepack_packager.sources import LoadContext, load_source

Feeds = dict[str, npt.NDArray[Any]]


def plain_onnx(model: Path, columns: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """The model converted by its framework's own exporter."""
    with TemporaryDirectory() as folder:
        source = load_source(
            model, LoadContext(Path(folder), columns=columns, trust_pickle="sandboxed")
        )
    onnx.save(source.graph, path)


def default_static(path: Path, rows: Feeds, target: Path) -> str:
    """``quantize_static`` after its own preprocessing; gives the reason where it fails."""
    return _attempt(lambda: _static(path, rows, target))


def default_dynamic(path: Path, target: Path) -> str:
    """``quantize_dynamic``; gives the reason where it fails."""
    return _attempt(lambda: quantize_dynamic(path, target))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, rows: Feeds) -> None:
        self._rows: Iterator[Feeds] = (
            {name: values[place : place + 1] for name, values in rows.items()}
            for place in range(len(next(iter(rows.values()))))
        )

    def get_next(self) -> Feeds | None:
        return next(self._rows, None)


def _static(path: Path, rows: Feeds, target: Path) -> None:
    # where its shape inference fails, it leaves files in the current folder
    with TemporaryDirectory() as folder, chdir(folder):
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(path, prepared)
        quantize_static(prepared, target, _Reader(rows))


def _attempt(quantize: Any) -> str:
    logging.disable(logging.WARNING)
    try:
        quantize()
    except Exception as error:  # noqa: BLE001 - whatever a tool of somebody else raises is its result
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    finally:
        logging.disable(logging.NOTSET)
    return ""


def first_rows(path: Path, *, label: str | None, most: int) -> Feeds:
    """The arrays of an npz without the label, cut."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name][:most] for name in archive.files if name != label}
