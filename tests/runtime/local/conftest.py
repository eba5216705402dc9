"""A device's files without its daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from world_device import make_home

from edgepack_runtime.config import RuntimeConfig, load_config


@pytest.fixture
def device_config(tmp_path) -> Callable[..., RuntimeConfig]:
    """Makes the configuration of a device in ``tmp_path``, as enrolment leaves it."""

    def make(*, serve: dict[str, Any] | None = None, **changes: Any) -> RuntimeConfig:
        make_home(tmp_path / "made", "pi-9", 1)
        for path in (tmp_path / "made").iterdir():
            path.rename(tmp_path / path.name)
        (tmp_path / "state").mkdir(mode=0o700)
        config = load_config(tmp_path / "device.toml", {})
        told = {name: str(tmp_path / value) for name, value in (serve or {}).items()}
        listen = msgspec.structs.replace(config.serve, **told)
        return msgspec.structs.replace(config, serve=listen, **changes)

    return make
