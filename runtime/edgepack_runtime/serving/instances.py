"""``POST /v1/models/M:predict``: instances in, predictions out, for people.

An instance is a row: a list of numbers in the order of the features, an object keyed by feature
name, or, for inputs with more dimensions, a nested list (an object keyed by input name when there
are several). A prediction of a classifier is ``{"label", "probabilities"}``, of any other model the
row of its output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgepack_contract.description import Description, TensorSpec
from edgepack_contract.limits import KIB
from edgepack_contract.statistics import UNKNOWN_CLASS
from edgepack_runtime.inference.coerce import (
    check_feeds,
    rows_from_json,
    tensor_from_values,
)
from edgepack_runtime.inference.errors import BadRequestError, ShapeError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.codec import Encoded, Payload, PredictRequest
from edgepack_runtime.serving.model import ServingModel

_PEEK_BYTES = 64
_MOST_PLAIN_BYTES = 64 * KIB
"""What is larger holds more than is read in one go."""

_FEW_VALUES = 256


class _Request(msgspec.Struct, frozen=True):
    instances: msgspec.Raw


_decoder = msgspec.json.Decoder(_Request)
_objects = msgspec.json.Decoder(list[dict[str, Any]])
_lists = msgspec.json.Decoder(list[list[Any]])
_encoder = msgspec.json.Encoder()


class _Numbers(msgspec.Struct, frozen=True):
    instances: list[list[float]]


_numbers = msgspec.json.Decoder(_Numbers)


class InstancesCodec:
    """The v1 protocol of KServe, with rows by feature name and answers by label."""

    def decode(self, model: ServingModel, payload: Payload) -> PredictRequest:
        """Read a predict request.

        Raises:
            InputError: It does not fit the protocol or the model.
        """
        feeds = _plain_rows(model, payload.body)
        if feeds is not None:
            return PredictRequest(feeds, key=payload.key)
        try:
            raw = _decoder.decode(payload.body).instances
            feeds = decode_instances(model.description, raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(
                f'expected {{"instances": [row, ...]}}, each row a list or an object: {error}'
            ) from error
        check_feeds(model.description, feeds)
        return PredictRequest(feeds, key=payload.key)

    def encode(
        self, slot: str, model: ServingModel, request: PredictRequest, outputs: dict[str, Tensor]
    ) -> Encoded:
        """Write the predictions, one for each instance."""
        answer = {
            "predictions": predictions(model, request.rows, outputs),
            "model_name": slot,
            "model_version": model.version,
        }
        return Encoded(_encoder.encode(answer))


def decode_instances(description: Description, raw: msgspec.Raw) -> dict[str, Tensor]:
    """Turn rows into an array for each input.

    Raises:
        InputError: Rows, names or values do not fit.
        msgspec.DecodeError: Neither lists nor objects.
    """
    specs = _row_inputs(description)
    if bytes(memoryview(raw)[:_PEEK_BYTES]).lstrip(b"[ \t\r\n").startswith(b"{"):
        return _from_objects(specs, _objects.decode(raw))
    if len(specs) == 1:
        return {specs[0].name: rows_from_json(specs[0], raw)}
    return _from_lists(specs, _lists.decode(raw))


def feeds_of_rows(description: Description, rows: Sequence[Any]) -> dict[str, Tensor]:
    """Turn rows of plain Python values into an array for each input.

    Raises:
        InputError: Rows, names or values do not fit.
    """
    specs = _row_inputs(description)
    if rows and isinstance(rows[0], dict):
        return _from_objects(specs, msgspec.convert(rows, list[dict[str, Any]]))
    if len(specs) == 1:
        return {specs[0].name: tensor_from_values(specs[0], rows)}
    return _from_lists(specs, msgspec.convert(rows, list[list[Any]]))


def column_names(spec: TensorSpec) -> list[str]:
    """What the values of one row of this input are called; nothing when a row is not flat."""
    if spec.features:
        return list(spec.features)
    if len(spec.shape) == 1:
        return [spec.name]
    width = spec.shape[1]
    if len(spec.shape) > 2 or not isinstance(width, int):
        return []
    return [spec.name] if width == 1 else [f"{spec.name}[{place}]" for place in range(width)]


def predictions(model: ServingModel, rows: int, outputs: Mapping[str, Tensor]) -> list[Any]:
    """One prediction for each row.

    Raises:
        BadRequestError: The outputs are not by row; the v2 protocol can carry them.
    """
    for name, array in outputs.items():
        if array.ndim < 1 or array.shape[0] != rows:
            raise BadRequestError(
                f"output {name!r} has shape {list(array.shape)}, which is not one row for each of "
                f"{rows} instances; use /v2/models/M/infer"
            )
    if model.reader.classifies:
        return _few_classes(model, rows, outputs) or _classes(model, outputs)
    if len(outputs) == 1:
        return _plain(next(iter(outputs.values())))
    columns = {name: _plain(array) for name, array in outputs.items()}
    return [{name: column[row] for name, column in columns.items()} for row in range(rows)]


def _plain_rows(model: ServingModel, body: bytes) -> dict[str, Tensor] | None:
    """The usual request, lists of numbers for one input, read in one go; None for any other."""
    usual = model.float_rows
    if usual is None or len(body) > _MOST_PLAIN_BYTES:
        return None
    try:
        rows = usual.read(_numbers.decode(body).instances)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # objects, nulls, or an error, whose words are for the long way to find
        return None
    return None if rows is None else {usual.name: rows}


def _row_inputs(description: Description) -> list[TensorSpec]:
    for spec in description.inputs:
        if spec.role == "state":
            raise BadRequestError(
                f"input {spec.name!r} is carried from call to call; use /v2/models/M/infer"
            )
        if not spec.shape:
            raise BadRequestError(f"input {spec.name!r} has no rows; use /v2/models/M/infer")
    return description.inputs


def _from_lists(specs: Sequence[TensorSpec], rows: list[list[Any]]) -> dict[str, Tensor]:
    names = [name for spec in specs for name in column_names(spec)]
    for spec in specs:
        if not column_names(spec):
            raise BadRequestError(
                f"input {spec.name!r} is no list of columns; send objects keyed by input name"
            )
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise ShapeError(
                f"instance {number}: expected {len(names)} values ({', '.join(names)[:200]}), "
                f"given {len(row)}"
            )
    named = [dict(zip(names, row, strict=True)) for row in rows]
    return {spec.name: _columns(spec, named) for spec in specs}


def _from_objects(specs: Sequence[TensorSpec], rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    if not rows:
        raise ShapeError("there are no instances")
    whole = {spec.name for spec in specs if _is_whole(spec, rows[0])}
    expected = whole.union(
        name for spec in specs if spec.name not in whole for name in column_names(spec)
    )
    for number, row in enumerate(rows):
        if row.keys() != expected:
            raise BadRequestError(_names_text(number, expected, row))
    return {
        spec.name: tensor_from_values(spec, [row[spec.name] for row in rows])
        if spec.name in whole
        else _columns(spec, rows)
        for spec in specs
    }


def _is_whole(spec: TensorSpec, row: dict[str, Any]) -> bool:
    """Whether the first row gives this input under its own name, nested, and not by column."""
    names = column_names(spec)
    return not names or (
        isinstance(row.get(spec.name), list) and (names == [spec.name] or spec.name not in names)
    )


def _columns(spec: TensorSpec, rows: list[dict[str, Any]]) -> Tensor:
    names = column_names(spec)
    if len(spec.shape) == 1:
        return tensor_from_values(spec, [row[names[0]] for row in rows])
    return tensor_from_values(spec, [[row[name] for name in names] for row in rows])


def _names_text(number: int, expected: set[str], row: Mapping[str, Any]) -> str:
    missing = ", ".join(sorted(expected - row.keys()))[:200]
    unknown = ", ".join(sorted(row.keys() - expected))[:200]
    parts = [f"{missing} missing"] if missing else []
    parts += [f"{unknown} unknown"] if unknown else []
    return f"instance {number}: {'; '.join(parts)}"


def _few_classes(model: ServingModel, rows: int, outputs: Mapping[str, Tensor]) -> list[Any] | None:
    """The usual answer, a label and probabilities for each row; None for any other."""
    if model.plain_classes is None:
        return None
    name, labels = model.plain_classes
    array = outputs[name]
    if array.shape != (rows, len(labels)) or array.size > _FEW_VALUES:
        return None
    told: list[Any] = []
    for shares in array.tolist():
        # one that is not finite has no largest, and makes the sum so
        if not math.isfinite(sum(shares)):
            return None
        best = shares.index(max(shares))
        told.append(
            {"label": labels[best], "probabilities": dict(zip(labels, shares, strict=True))}
        )
    return told


def _classes(model: ServingModel, outputs: Mapping[str, Tensor]) -> list[Any]:
    labels = model.reader.labels
    columns: dict[str, list[Any]] = {"label": _labels(model, labels, outputs)}
    for spec in model.description.outputs:
        if spec.kind == "label":
            continue
        name = spec.kind if spec.kind in ("probabilities", "scores") else spec.name
        array = outputs[spec.name]
        columns[name] = values = _plain(array)
        if name == "probabilities" and labels and array.shape[1:] == (len(labels),):
            columns[name] = [dict(zip(labels, row, strict=True)) for row in values]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _labels(
    model: ServingModel, labels: list[str] | None, outputs: Mapping[str, Tensor]
) -> list[Any]:
    places = model.reader.places(outputs)
    if labels is not None and UNKNOWN_CLASS not in places:
        return [labels[place] for place in places]
    own = next((spec for spec in model.description.outputs if spec.kind == "label"), None)
    raw = _plain(outputs[own.name]) if own is not None else places
    if labels is None:
        return raw
    return [labels[place] if place >= 0 else raw[row] for row, place in enumerate(places)]


def _plain(array: Tensor) -> list[Any]:
    """Nested lists by row; a row of one value is that value."""
    single = array.ndim == 2 and array.shape[1] == 1
    values: list[Any] = (array[:, 0] if single else array).tolist()
    return values
