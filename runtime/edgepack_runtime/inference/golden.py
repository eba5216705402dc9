"""Golden rows: inputs with the answers that the model must give before it may serve.

``golden.safetensors`` holds one tensor per input and output, named ``input:NAME`` and
``output:NAME``; texts are stored as ``input-utf8:NAME``, their bytes padded with NUL to one width
in a last dimension. The first dimension counts rows, and **each row is one run** of the model: a
result may depend on what else is in the batch (dynamic quantization scales by it), so the batch is
part of what is compared. Where the graph fixes its first dimension to B, a row takes B entries; a
tensor without dimensions takes one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from edgepack_contract.description import Golden
from edgepack_contract.limits import LIMITS
from edgepack_runtime.inference.errors import GoldenError
from edgepack_runtime.inference.session import Session, Tensor, TensorInfo


@dataclass(frozen=True, slots=True)
class GoldenRows:
    """Golden rows in memory; the first dimension of each tensor as the module describes it."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """How a model did on its golden rows.

    Attributes:
        ok: Whether it may serve.
        rows: How many runs were compared.
        top1_agreement: The lowest share of equal decisions over the outputs that decide.
        max_difference: The largest absolute difference of a number.
        words: Why not, empty when ``ok``.
    """

    ok: bool
    rows: int
    top1_agreement: float
    max_difference: float
    words: str = ""


def check_golden(session: Session, golden_path: Path, golden: Golden) -> GoldenResult:
    """Run the golden rows and compare.

    Raises:
        GoldenError: The file cannot be read, or does not fit the model.
        ModelRunError: The model failed.
    """
    rows = load_golden(golden_path)
    answers = run_rows(session, rows.inputs, golden.rows)
    return compare_golden(answers, rows.outputs, golden)


def load_golden(path: Path) -> GoldenRows:
    """Read golden rows.

    Raises:
        GoldenError: Missing, too large, not safetensors, or a tensor with another name.
    """
    try:
        size = path.stat().st_size
        if size > LIMITS.golden_bytes:
            raise GoldenError(f"{path.name} has {size} bytes, at most {LIMITS.golden_bytes}")
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise GoldenError(f"{path.name} cannot be read: {error}") from error
    rows = GoldenRows(inputs={}, outputs={})
    for key, tensor in tensors.items():
        side, _, name = key.partition(":")
        place = {"input": rows.inputs, "output": rows.outputs}.get(side.removesuffix("-utf8"))
        if place is None or name in place:
            raise GoldenError(f"{path.name}: {key[:80]!r} is not a tensor that golden rows have")
        place[name] = _to_texts(tensor) if side.endswith("-utf8") else tensor
    return rows


def golden_bytes(rows: GoldenRows) -> bytes:
    """The content of ``golden.safetensors``; the same rows give the same bytes."""
    tensors = {}
    for side, values in (("input", rows.inputs), ("output", rows.outputs)):
        for name, tensor in sorted(values.items()):
            textual = tensor.dtype.kind in "OU"
            stored = _from_texts(tensor) if textual else np.ascontiguousarray(tensor)
            tensors[f"{side}{'-utf8' if textual else ''}:{name}"] = stored
    return save(tensors)


def run_rows(session: Session, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Run ``rows`` rows, one run each, and join the answers along the first dimension.

    Raises:
        GoldenError: The inputs do not hold that many rows of this model.
        ModelRunError: The model failed.
    """
    runs = [session.run(feeds) for feeds in split_rows(session, inputs, rows)]
    return {
        name: np.concatenate([np.atleast_1d(answer[name]) for answer in runs]) for name in runs[0]
    }


def split_rows(
    session: Session, inputs: Mapping[str, Tensor], rows: int
) -> Iterator[dict[str, Tensor]]:
    """The feeds of each run.

    Raises:
        GoldenError: The inputs do not hold that many rows of this model.
    """
    taken = {}
    for info in session.inputs:
        each = info.shape[0] if info.shape and isinstance(info.shape[0], int) else 1
        if info.name not in inputs or inputs[info.name].shape[:1] != (rows * each,):
            raise GoldenError(f"golden rows: input {info.name!r} does not hold {rows} rows")
        taken[info.name] = (info, each)
    for row in range(rows):
        yield {
            name: _take(info, inputs[name], row * each, each)
            for name, (info, each) in taken.items()
        }


def compare_golden(
    answers: Mapping[str, Tensor], expected: Mapping[str, Tensor], golden: Golden
) -> GoldenResult:
    """Compare answers with what they must be.

    Decisions (labels, and the largest of a row of floats) must agree on the golden share; floats
    must also lie within ``atol + rtol * |expected|``, and NaN only where NaN is expected.

    Raises:
        GoldenError: Other outputs are expected than the model has.
    """
    if answers.keys() != expected.keys():
        raise GoldenError(
            f"golden rows expect the outputs {sorted(expected)}, the model has {sorted(answers)}"
        )
    agreement, difference, faults = 1.0, 0.0, []
    for name, wanted in expected.items():
        given = answers[name]
        if given.shape != wanted.shape:
            faults.append(f"output {name!r}: shape {list(given.shape)}, not {list(wanted.shape)}")
            continue
        share = _agreement(given, wanted)
        if share < golden.top1_agreement:
            faults.append(
                f"output {name!r}: {share:.2%} of the decisions agree, "
                f"at least {golden.top1_agreement:.2%} must"
            )
        furthest, excess = _differences(given, wanted, golden)
        if excess:
            faults.append(
                f"output {name!r}: {excess} of {given.size} values outside "
                f"{golden.atol:g} + {golden.rtol:g} |expected|, the furthest by {furthest:g}"
            )
        agreement, difference = min(agreement, share), max(difference, furthest)
    return GoldenResult(not faults, golden.rows, agreement, difference, "; ".join(faults))


def _take(info: TensorInfo, tensor: Tensor, start: int, count: int) -> Tensor:
    part: Tensor = tensor[start : start + count] if info.shape else np.asarray(tensor[start])
    return part


def _agreement(given: Tensor, wanted: Tensor) -> float:
    if wanted.dtype.kind == "f":
        if wanted.ndim < 2 or wanted.shape[-1] < 2:
            return 1.0
        given, wanted = given.argmax(axis=-1), wanted.argmax(axis=-1)
    equal = np.asarray(given == wanted)
    return float(equal.mean()) if equal.size else 1.0


def _differences(given: Tensor, wanted: Tensor, golden: Golden) -> tuple[float, int]:
    if wanted.dtype.kind != "f":
        return 0.0, 0
    one, two = given.astype(np.float64), wanted.astype(np.float64)
    close = np.isclose(one, two, rtol=golden.rtol, atol=golden.atol, equal_nan=True)
    gaps = np.abs(one - two)[np.isfinite(one) & np.isfinite(two)]
    return float(gaps.max(initial=0.0)), int(np.count_nonzero(~close))


def _from_texts(texts: Tensor) -> Tensor:
    encoded = np.char.encode(texts.astype(str), "utf-8")
    width = max(encoded.dtype.itemsize, 1)
    padded = np.ascontiguousarray(encoded.astype(f"S{width}"))
    return padded.view(np.uint8).reshape(*texts.shape, width)


def _to_texts(stored: Tensor) -> Tensor:
    if stored.dtype != np.uint8 or stored.ndim < 1 or not stored.shape[-1]:
        raise GoldenError("golden texts are stored as bytes, padded in a last dimension")
    packed = np.ascontiguousarray(stored).view(f"S{stored.shape[-1]}").reshape(stored.shape[:-1])
    try:
        return np.char.decode(packed, "utf-8").astype(object)
    except UnicodeDecodeError as error:
        raise GoldenError(f"a golden text is not UTF-8: {error}") from error
