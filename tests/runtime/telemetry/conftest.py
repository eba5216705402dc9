"""The reference that telemetry counts against."""

from __future__ import annotations

import pytest
from telemetry_rows import describe, rows

from edgepack_contract.reference import Reference
from edgepack_contract.statistics import build_reference


@pytest.fixture(scope="session")
def reference() -> Reference:
    x, p = rows(0, 4000)
    return build_reference(describe(), {"x": x}, {"p": p})
