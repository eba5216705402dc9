"""Statistics of rows, the same on the device and at build time; the contract's only numpy."""

from edgepack_contract.statistics.build import (
    build_feature_reference,
    build_reference,
    quantile_edges,
)
from edgepack_contract.statistics.inputs import (
    EdgeCounter,
    InputCounter,
    Tally,
    TextCounter,
    descriptors,
    flatten,
)
from edgepack_contract.statistics.longrun import long_run_calibration
from edgepack_contract.statistics.outputs import (
    UNKNOWN_CLASS,
    ClassReader,
    OutputCounter,
    OutputTally,
    confidence,
    empty_output_reference,
)

__all__ = [
    "UNKNOWN_CLASS",
    "ClassReader",
    "EdgeCounter",
    "InputCounter",
    "OutputCounter",
    "OutputTally",
    "Tally",
    "TextCounter",
    "build_feature_reference",
    "build_reference",
    "confidence",
    "descriptors",
    "empty_output_reference",
    "flatten",
    "long_run_calibration",
    "quantile_edges",
]
