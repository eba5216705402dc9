"""The gRPC listener beside the others, where the configuration asks for it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from edgepack_contract.errors import ConfigError
from edgepack_runtime.config import ServeConfig
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.slot import Slot

logger = logging.getLogger(__name__)


async def _nothing(_seconds: float) -> None:
    """There is no listener to end."""


@dataclass(frozen=True, slots=True)
class Calls:
    """The gRPC listener, if there is one.

    Attributes:
        port: Its TCP port, None without one.
        stop: Takes no more calls, finishes what is in flight within so many seconds.
    """

    port: int | None = None
    stop: Callable[[float], Awaitable[None]] = _nothing


@contextlib.asynccontextmanager
async def answering_calls(
    app: App, slots: Mapping[str, Slot], config: ServeConfig, guard: Guard
) -> AsyncIterator[Calls]:
    """Answer gRPC when ``config`` names a port for it; cut what is left when the block ends.

    Raises:
        ConfigError: grpcio is not installed (code ``missing-extra``), or the place cannot be
            listened at (code ``cannot-listen``).
    """
    if config.grpc_port is None:
        yield Calls()
        return
    try:
        # grpcio is an extra: a device without it neither has nor loads it
        from edgepack_runtime.serving.grpc.service import listen  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serve.grpc_port needs {error.name}; run: pip install 'edgepack[grpc]'",
            code="missing-extra",
        ) from error
    listener = await listen(app, slots, config, guard)
    logger.info("gRPC on port %d", listener.port, extra={"event": "grpc", "port": listener.port})
    try:
        yield Calls(listener.port, listener.stop)
    finally:
        await listener.stop(0)
