"""What every daemon does while it listens, that of a fleet and that of a single bundle.

It knows nothing of a fleet, so that who serves one bundle keeps no link and no installs in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import Waiver
from edgepack_runtime.admission import warn_of_expiry
from edgepack_runtime.config import ServeConfig
from edgepack_runtime.notify import Notifier
from edgepack_runtime.security import Facts, security_gate
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.calls import Calls
from edgepack_runtime.serving.server import RunningServer
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.stopping import Stop
from edgepack_runtime.watchdog import Watchdog

logger = logging.getLogger(__name__)


def on_hangup(work: Callable[[], None]) -> None:
    """Do ``work`` in the loop at every SIGHUP from now on, which would kill the process else."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, work)


def reload(server: RunningServer, facts: Facts, waiver: Waiver | None) -> None:
    """Take up a new certificate and token, when nothing is insecure that was not waived."""
    try:
        check_still_safe(facts, waiver)
        server.reload(facts.serve)
        warn_of_expiry(facts)
    except ConfigError as error:
        words = "certificate and token stay as they are: %s"
        logger.warning(words, error, extra={"event": "reload_refused"})
    else:
        logger.info("certificate and token were read again", extra={"event": "reloaded"})


def check_still_safe(facts: Facts, waiver: Waiver | None) -> None:
    """Refuse facts that are insecure in another way than was waived.

    Raises:
        ConfigError: They are, code ``insecure``.
    """
    waived = waiver.violations if waiver is not None else ()
    refused = [str(one) for one in security_gate(facts) if one not in waived]
    if refused:
        raise ConfigError("; ".join(refused), code="insecure")


def watch(
    notifier: Notifier, slots: Mapping[str, Slot], dead: Callable[[], list[str]]
) -> list[asyncio.Task[None]]:
    """Begin to tell the service manager that the daemon works, if it wants to know."""
    seconds = notifier.watchdog_seconds
    if seconds is None:
        return []
    notifier.alive()
    watchdog = Watchdog(slots, dead=dead, alive=notifier.alive)
    return [asyncio.create_task(watchdog.run(seconds), name="watchdog")]


def tell_ports(server: RunningServer, words: str) -> None:
    """Say where the listeners are."""
    where = {"port": server.port, "ops_port": server.ops_port}
    logger.info(words, extra={"event": "serving", **where})
    if server.ops_port is not None:
        logger.info("health and metrics on port %d", server.ops_port, extra={"event": "ops"})


@dataclass(frozen=True, slots=True)
class Listeners:
    """Whoever answers requests, and how they end together."""

    app: App
    server: RunningServer
    calls: Calls
    config: ServeConfig

    async def end(self, stop: Stop) -> None:
        """Say that this is not ready, finish what is in flight; hurry when asked again."""
        self.app.ending = True
        ending = asyncio.create_task(self._end(stop))
        hurried = asyncio.create_task(stop.hurried.wait())
        await asyncio.wait({ending, hurried}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            logger.warning("asked again: requests in flight are cut", extra={"event": "hurried"})
            self.server.hurry()
            await self.calls.stop(0)
        hurried.cancel()
        await ending

    async def _end(self, stop: Stop) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_seconds):
                await stop.hurried.wait()
        grace = 0 if stop.hurried.is_set() else self.config.grace_seconds
        await asyncio.gather(self.server.stop(), self.calls.stop(grace))
