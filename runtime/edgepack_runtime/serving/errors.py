"""Why a request gets no prediction although its input may be right."""

from __future__ import annotations

from edgepack_contract.errors import EdgepackError
from edgepack_runtime.inference.errors import ModelError, ModelRunError


class ServingError(EdgepackError):
    """The request cannot be answered as things stand."""

    default_code = "serving"


class UnknownModelError(ServingError):
    """No slot of that name, or another version than the one that serves."""

    default_code = "unknown-model"


class NoModelError(ServingError):
    """The slot has no model right now; it is being replaced, or none could be started."""

    default_code = "no-model"


class OverloadError(ServingError):
    """More requests wait for the model than may."""

    default_code = "overload"


class NoRoomError(ServingError):
    """Large requests of others take the memory that there is for such."""

    default_code = "no-room"


class DeadlineError(ModelRunError):
    """The model did not answer in time; its run was ended."""

    default_code = "deadline"


class NonfiniteOutputError(ModelError):
    """The model answered NaN or an infinity, and its bundle does not allow for that."""

    default_code = "nonfinite-output"
