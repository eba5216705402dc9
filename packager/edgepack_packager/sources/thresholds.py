"""Trees that compare in float64: their thresholds as they were fitted, for inputs of that type.

Converters round thresholds to float32, whatever the input's type. Rounding keeps order, so that a
row takes another branch only where a value and a threshold round to the same float (onnx.ai,
"Discrepancies between float and double"); with few distinct values, or thresholds between
neighbours, that is many rows. What is written here compares as the framework itself does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

Converter = Callable[[Any, Any, Any], None]

Native = Literal["float32", "float64"]

TENSORS_SINCE = 3
"""The opset of ai.onnx.ml from which trees may hold float64."""

_ENSEMBLES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_NUMBERS = (
    "nodes_values", "nodes_hitrates", "class_weights", "target_weights", "base_values",
)  # fmt: skip


def exactly(convert: Converter, native: Native) -> Converter:
    """A converter like ``convert`` whose trees compare as the framework does.

    Args:
        convert: The converter; it takes scope, operator and container.
        native: The type that the framework itself compares in. scikit-learn's own trees and
            XGBoost cast to float32 first; their converters write thresholds that fit floats.
    """

    def converted(scope: Any, operator: Any, container: Any) -> None:
        double = any(isinstance(item.type, DoubleTensorType) for item in operator.inputs)
        if double and native == "float32":
            _convert_in_floats(convert, scope, operator, container)
        else:
            convert(scope, operator, _Exact(scope, operator, container, double=double))

    return converted


class _Floats:
    """An operator with floats in the place of its inputs and outputs of type float64."""

    def __init__(self, operator: Any, scope: Any) -> None:
        self._operator = operator
        self.inputs = [_as_float(item, scope) for item in operator.inputs]
        self.outputs = [_as_float(item, scope) for item in operator.outputs]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)

    @property
    def input_full_names(self) -> list[str]:
        return [item.full_name for item in self.inputs]

    @property
    def output_full_names(self) -> list[str]:
        return [item.full_name for item in self.outputs]


def _as_float(item: Any, scope: Any) -> Any:
    if not isinstance(item.type, DoubleTensorType):
        return item
    return scope.declare_local_variable("as_float", FloatTensorType(item.type.shape))


def _convert_in_floats(convert: Converter, scope: Any, operator: Any, container: Any) -> None:
    floats = _Floats(operator, scope)
    for wide, narrow in zip(operator.inputs, floats.inputs, strict=True):
        if wide is not narrow:
            container.add_node("Cast", [wide.full_name], [narrow.full_name], to=TensorProto.FLOAT)
    convert(scope, floats, container)
    for wide, narrow in zip(operator.outputs, floats.outputs, strict=True):
        if wide is not narrow:
            container.add_node("Cast", [narrow.full_name], [wide.full_name], to=TensorProto.DOUBLE)


class _Exact:
    """A converter's container that writes tree ensembles in float64, and all else as it is."""

    def __init__(self, scope: Any, operator: Any, container: Any, *, double: bool) -> None:
        self._scope = scope
        self._container = container
        self._double = double
        self._floats = {
            item.full_name for item in operator.outputs if isinstance(item.type, FloatTensorType)
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> None:
        if op_type not in _ENSEMBLES:
            self._container.add_node(op_type, inputs, outputs, **attributes)
            return
        attributes = _plain(attributes)
        if self._double:
            attributes = _in_double(attributes)
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        written = [*names[:-1], self._output(names[-1])]
        self._container.add_node(op_type, inputs, written, **attributes)
        if written != names:
            self._container.add_node("Cast", [written[-1]], [names[-1]], to=TensorProto.DOUBLE)

    def _output(self, name: str) -> str:
        """Where the operator's numbers go: it gives floats, even where float64 is expected."""
        if not self._double or name in self._floats:
            return name
        return str(self._scope.get_unique_variable_name("as_float"))


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Flags as integers: numpy's own are no attribute of a node."""
    tracks = attributes.get("nodes_missing_value_tracks_true")
    if tracks is None:
        return attributes
    return {**attributes, "nodes_missing_value_tracks_true": [int(value) for value in tracks]}


def _in_double(attributes: dict[str, Any]) -> dict[str, Any]:
    found = {k: values for k, values in attributes.items() if k not in _NUMBERS}
    found["op_version"] = TENSORS_SINCE
    for name in _NUMBERS:
        if name in attributes:
            found[f"{name}_as_tensor"] = _tensor(name, attributes[name])
    return found


def _tensor(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.float64).ravel(), name)
