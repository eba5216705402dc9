"""What every test shares: deterministic hypothesis, and tests that need foreign programs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal

import pytest
from hypothesis import HealthCheck, settings

from edgepack_contract.message_types import prepare_types

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

settings.register_profile(
    "edgepack",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("edgepack")

# a script that starts the suite in the background, and nohup, have them ignored, which is inherited
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL),
):  # fmt: skip
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

FOREIGN_REQUIRED = os.environ.get("EDGEPACK_FOREIGN") == "1"
"""Set by ``make test-foreign``, which installs the programs: there a skip is a failure."""


FRAMEWORKS_REQUIRED = os.environ.get("EDGEPACK_FRAMEWORKS") == "1"
"""Set by ``make test-frameworks``, which installs the packages."""


def pytest_collection_finish() -> None:
    # tests make threads of the product in this process, as its own main functions do after this
    prepare_types()


def _absent(item: pytest.Item) -> list[str]:
    marker = item.get_closest_marker("framework")
    names = marker.args if marker else ()
    return [name for name in names if importlib.util.find_spec(name) is None]


def _missing(item: pytest.Item) -> list[str]:
    marker = item.get_closest_marker("foreign")
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return [tool for tool in marker.args if shutil.which(tool, path=path) is None] if marker else []


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = _missing(item)
    if missing and FOREIGN_REQUIRED:
        pytest.fail(f"needs {', '.join(missing)}, which make test-foreign should have installed")
    if missing:
        pytest.skip(f"not run: needs {', '.join(missing)} (make test-foreign installs them)")
    absent = _absent(item)
    if absent and FRAMEWORKS_REQUIRED:
        pytest.fail(f"needs {', '.join(absent)}, which make test-frameworks should have installed")
    if absent:
        pytest.skip(f"not run: needs {', '.join(absent)} (make test-frameworks installs them)")
