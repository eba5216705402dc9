"""scikit-learn models in ``.skops`` files, which load without running code that came with them."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import skl2onnx
import sklearn
import skops.io
from skl2onnx.common.data_types import FloatTensorType
from sklearn.base import is_classifier, is_outlier_detector, is_regressor

from edgepack_contract.description import Task
from edgepack_contract.digest import sha256_digest
from edgepack_contract.limits import GIB
from edgepack_packager.data.rows import Feeds
from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.sources.model import Answer, LoadContext, SourceModel, as_labels

INPUT = "input"
TARGET_OPSETS = {"": 17, "ai.onnx.ml": 3}
"""Given on purpose: the newest opset that the converter knows may be newer than the runtime's."""

SAFE_TYPES = frozenset({
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
})  # fmt: skip
"""Types of scikit-learn itself that hold numbers only, but are not public estimators."""

MAX_FILE_BYTES = 4 * GIB


def load_skops(path: Path, context: LoadContext) -> SourceModel:
    """Load a ``.skops`` file and convert it.

    Raises:
        ModelSourceError: Unreadable, not a fitted model, or with types that are not known safe.
        ConversionError: skl2onnx has no converter for a part of it.
    """
    raw = _read(path)
    model = _load(path, raw, context.trusted_types)
    n_features = getattr(model, "n_features_in_", None)
    if n_features is None:
        raise ModelSourceError(
            f"{path.name} holds a {type(model).__name__} that was not fitted to numeric columns"
        )
    names = getattr(model, "feature_names_in_", None)
    classes = getattr(model, "classes_", None)
    graph = _convert(model, int(n_features))
    return SourceModel(
        graph=graph,
        digest=sha256_digest(raw),
        framework=f"scikit-learn {sklearn.__version__}",
        task=_task(model),
        features=None if names is None else tuple(str(name) for name in names),
        classes=None if classes is None else tuple(str(label) for label in as_labels(classes)),
        answer=_answer(model, graph.graph.output[0].name),
        tools={
            name: importlib.metadata.version(name)
            for name in ("onnx", "scikit-learn", "skl2onnx", "skops")
        },
        passes=("load-skops", "skl2onnx"),
    )


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelSourceError(f"{path.name} has over {MAX_FILE_BYTES} bytes", code="too-large")
        return path.read_bytes()
    except OSError as error:
        raise ModelSourceError(f"cannot read {path}: {error.strerror}") from error


def _load(path: Path, raw: bytes, trusted_types: Sequence[str]) -> Any:
    trusted = SAFE_TYPES | set(trusted_types)
    try:
        unknown = sorted(set(skops.io.get_untrusted_types(data=raw)) - trusted)
        if unknown:
            raise ModelSourceError(
                f"{path.name} wants to load {', '.join(unknown)}; loading a type may run its code. "
                "If you trust the file and these types, name them in trusted_types",
                code="untrusted-types",
            )
        return skops.io.loads(raw, trusted=sorted(trusted))
    except (BadZipFile, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        # what skops raises for a file that is not one of its own, or is of a newer version
        raise ModelSourceError(f"{path.name} is not a readable .skops file: {error}") from error


def _task(model: Any) -> Task:
    if is_classifier(model):
        return "classification"
    if is_regressor(model):
        return "regression"
    kind = "an outlier detector" if is_outlier_detector(model) else "neither of them"
    raise ConversionError(
        f"a {type(model).__name__} is {kind}; classifiers and regressors can be packed",
        code="unsupported-model",
    )


def _answer(model: Any, output: str) -> Answer:
    def answer(feeds: Feeds) -> Feeds:
        with warnings.catch_warnings():
            # names of columns were matched when the rows were bound; here they are plain arrays
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            predicted = np.asarray(model.predict(feeds[INPUT]))
        if is_classifier(model):
            if predicted.ndim > 1:
                raise ConversionError("several labels a row are not supported", code="multi-label")
            return {output: as_labels(predicted)}
        return {output: predicted.reshape(len(predicted), -1).astype(np.float64)}

    return answer


def _convert(model: Any, n_features: int) -> Any:
    # zipmap would turn the scores into a sequence of maps, which no tensor protocol carries
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    try:
        return skl2onnx.to_onnx(
            model,
            initial_types=[(INPUT, FloatTensorType([None, n_features]))],
            options=options,
            target_opset=TARGET_OPSETS,
        )
    except (RuntimeError, NameError, ValueError, TypeError, NotImplementedError) as error:
        # the exceptions of skl2onnx derive from these
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ConversionError(
            f"skl2onnx cannot convert this {type(model).__name__}: {first[0]}"
        ) from error
