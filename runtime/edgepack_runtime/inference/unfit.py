"""Why a graph must not be loaded: one kind of error for each rule."""

from __future__ import annotations

from edgepack_contract.description import MODEL_PATH
from edgepack_runtime.inference.errors import UnfitModelError


def malformed(why: str) -> UnfitModelError:
    """It is not what ONNX says a model is."""
    return UnfitModelError(f"{MODEL_PATH}: {why}", code="malformed-model")


def undescribed(why: str) -> UnfitModelError:
    """Its description does not say that of it."""
    words = f"{MODEL_PATH}: {why}, which edgepack.json does not say of it"
    return UnfitModelError(words, code="undescribed-model")


def outside(why: str) -> UnfitModelError:
    """It names bytes that are not its own."""
    return UnfitModelError(f"{MODEL_PATH}: {why}", code="external-data")


def beyond_limit(why: str) -> UnfitModelError:
    """It is larger than any model has reason to be."""
    return UnfitModelError(f"{MODEL_PATH}: {why}", code="model-limits")
