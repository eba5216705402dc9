"""The gRPC listener beside the others, where the configuration asks for it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

from edgepack_contract.errors import ConfigError
from edgepack_runtime.config import ServeConfig
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.asgi import Asgi
from edgepack_runtime.serving.slot import Slot

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def answering_calls(
    app: Asgi, slots: Mapping[str, Slot], config: ServeConfig, guard: Guard
) -> AsyncIterator[int | None]:
    """Answer gRPC until the block ends, when ``config`` names a port for it.

    Yields:
        The port, None without a listener.

    Raises:
        ConfigError: grpcio is not installed (code ``missing-extra``), or the place cannot be
            listened at (code ``cannot-listen``).
    """
    if config.grpc_port is None:
        yield None
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
        yield listener.port
    finally:
        await listener.stop()
