"""``POST /predict`` and ``/predict/batch``: the paths that people's own servers have.

One row, or a list of rows, each as in :mod:`.instances`; ``{"instances": [...]}`` works too.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgepack_contract.description import Description
from edgepack_runtime.inference.coerce import check_feeds
from edgepack_runtime.inference.errors import BadRequestError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.codec import Encoded, Payload, PredictRequest
from edgepack_runtime.serving.instances import (
    InstancesCodec,
    column_names,
    decode_instances,
    predictions,
)
from edgepack_runtime.serving.model import ServingModel

_raw = msgspec.json.Decoder(msgspec.Raw)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()
_OBJECT = b"{"


class RowCodec:
    """Rows without an envelope.

    Args:
        batch: Whether a body without ``instances`` is a list of rows, and not one row.
    """

    def __init__(self, *, batch: bool) -> None:
        self._batch = batch
        self._instances = InstancesCodec()

    def decode(self, model: ServingModel, payload: Payload) -> PredictRequest:
        """Read a request.

        Raises:
            InputError: It does not fit the model.
        """
        description = model.description
        try:
            instances, single = self._rows(description, payload.body)
            feeds = decode_instances(description, instances)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(f"expected {self._expected()}: {error}") from error
        check_feeds(description, feeds)
        return PredictRequest(feeds, single=single, key=payload.key)

    def encode(
        self, slot: str, model: ServingModel, request: PredictRequest, outputs: dict[str, Tensor]
    ) -> Encoded:
        """Write the prediction of the row, or those of the rows."""
        if not request.single:
            return self._instances.encode(slot, model, request, outputs)
        (prediction,) = predictions(model, 1, outputs)
        answer: dict[str, Any] = {
            "prediction": prediction,
            "model_name": slot,
            "model_version": model.version,
        }
        return Encoded(_encoder.encode(answer))

    def _rows(self, description: Description, body: bytes) -> tuple[msgspec.Raw, bool]:
        """The rows as one JSON list, and whether they are a single row."""
        whole = _raw.decode(body)
        if bytes(memoryview(whole)[:1]) == _OBJECT:
            enveloped = _fields.decode(body).get("instances")
            if enveloped is not None and not _has_column(description, "instances"):
                return enveloped, False
        if self._batch:
            return whole, False
        return msgspec.Raw(b"[" + bytes(whole) + b"]"), True

    def _expected(self) -> str:
        if self._batch:
            return "a list of rows, each a list of values or an object by feature name"
        return "one row, a list of values or an object by feature name"


def _has_column(description: Description, name: str) -> bool:
    return any(name == spec.name or name in column_names(spec) for spec in description.inputs)
