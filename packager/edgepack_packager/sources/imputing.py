"""Missing numbers in float64, which onnxruntime's own Imputer does not take."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common._registration import get_converter
from skl2onnx.common.data_types import DoubleTensorType
from skl2onnx.operator_converters.common import concatenate_variables


def convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """Convert a ``SimpleImputer``: as skl2onnx does, but for float64 with plain operators."""
    imputer = operator.raw_operator
    if not any(isinstance(item.type, DoubleTensorType) for item in operator.inputs):
        get_converter("SklearnSimpleImputer")(scope, operator, container)
        return
    values = concatenate_variables(scope, operator.inputs, container)
    fill, gone = (scope.get_unique_variable_name(name) for name in ("fill", "missing"))
    statistics = np.asarray(imputer.statistics_, dtype=np.float64)
    container.add_initializer(fill, TensorProto.DOUBLE, [1, len(statistics)], statistics.tolist())
    if np.isnan(imputer.missing_values):
        container.add_node("IsNaN", [values], [gone], op_version=13)
    else:
        marker = scope.get_unique_variable_name("marker")
        container.add_initializer(marker, TensorProto.DOUBLE, [1], [float(imputer.missing_values)])
        container.add_node("Equal", [values, marker], [gone], op_version=13)
    container.add_node("Where", [gone, fill, values], [operator.outputs[0].full_name], op_version=9)
