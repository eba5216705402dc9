"""Every error of the packager, grouped by what has to change for the build to succeed."""

from __future__ import annotations

from edgepack_contract.errors import EdgepackError


class PackagerError(EdgepackError):
    """The root of the packager's errors."""

    default_code = "packager"


class RecipeError(PackagerError):
    """What was asked for contradicts itself, is unknown, or is out of range."""

    default_code = "recipe"


class InputError(PackagerError):
    """Something that was given to the build cannot be used."""

    default_code = "input"


class ModelSourceError(InputError):
    """The model file cannot be read, or may not be loaded because loading it would run code."""

    default_code = "model-source"


class DataError(InputError):
    """The data cannot be read, or does not fit the model's inputs."""

    default_code = "data"


class ConversionError(InputError):
    """The model has no faithful ONNX form that the runtime can load."""

    default_code = "conversion"


class AccuracyGateError(PackagerError):
    """No candidate is inside the accuracy gates; the message names the nearest miss."""

    default_code = "accuracy-gate"


class BudgetError(PackagerError):
    """No candidate is inside the latency, size or memory budget; the nearest miss is named."""

    default_code = "budget"


class LockError(PackagerError):
    """A locked build cannot be repeated: an input, a tool or the result differs from the lock."""

    default_code = "lock"
