"""What can go wrong between a request and its answer, by who is to blame."""

from __future__ import annotations

from typing import ClassVar, Literal

from edgepack_contract.errors import EdgepackError

InputErrorKind = Literal["bad_request", "shape", "nonfinite_input"]


class InputError(EdgepackError):
    """The caller's input does not fit the model; ``kind`` is how telemetry counts it."""

    default_code = "bad-input"
    kind: ClassVar[InputErrorKind] = "bad_request"


class BadRequestError(InputError):
    """The input is not what the protocol allows: JSON, names, types."""

    default_code = "bad-request"


class ShapeError(InputError):
    """The input has another shape than the model takes."""

    default_code = "bad-shape"
    kind = "shape"


class NonfiniteInputError(InputError):
    """The input holds NaN or an infinity, and the bundle says to refuse those."""

    default_code = "nonfinite-input"
    kind = "nonfinite_input"


class ModelError(EdgepackError):
    """The model is to blame, or the machine that should run it."""

    default_code = "model"


class ModelLoadError(ModelError):
    """onnxruntime cannot load the model, or it is not what its description says."""

    default_code = "load-failed"


class UnfitModelError(ModelError):
    """The graph must not be loaded at all; the code says which rule it breaks."""

    default_code = "malformed-model"


class ModelRunError(ModelError):
    """onnxruntime failed while it computed an answer."""

    default_code = "run-failed"


class GoldenError(ModelError):
    """The golden rows cannot be read, or do not belong to this model."""

    default_code = "bad-golden"
