"""One bundle, served to this machine with no fleet at all: ``edgepack run --bundle``."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path

from edgepack_contract.errors import ConfigError
from edgepack_contract.gate import admit
from edgepack_contract.keyring import Keyring
from edgepack_contract.trusted import TrustedBundle
from edgepack_runtime.admission import bundle_facts, reminding, warn_of_expiry
from edgepack_runtime.config import OpsConfig, ServeConfig
from edgepack_runtime.listeners import Listeners, on_hangup, reload, tell_ports, watch
from edgepack_runtime.loading import load_bundle
from edgepack_runtime.notify import Notifier
from edgepack_runtime.security import security_gate
from edgepack_runtime.serving.access import Guard
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.calls import answering_calls
from edgepack_runtime.serving.server import RunningServer, serve
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.stopping import Stop, until_stopped

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0


def unpacking_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for a bundle's files until its model is loaded.

    Raises:
        ConfigError: None can be made (``no-temporary-folder``).
    """
    try:
        return tempfile.TemporaryDirectory(prefix="edgepack-")
    except OSError as error:
        raise ConfigError(
            f"there is nowhere to unpack the bundle: {error.strerror}; name a folder that can be "
            "written: TMPDIR=/var/lib/edgepack",
            code="no-temporary-folder",
        ) from error


async def run_bundle(
    path: Path,
    listen: ServeConfig,
    keyring: Keyring | None,
    *,
    ops: OpsConfig,
    notifier: Notifier,
    reason: str | None = None,
) -> None:
    """Serve one bundle until SIGTERM or SIGINT.

    Args:
        path: The bundle.
        listen: Where, and behind which certificate and token.
        keyring: Who may sign; None serves anything that is whole, which is why only this machine
            is served.
        ops: The operations listener.
        notifier: The service manager.
        reason: Why it shall run although it is insecure, None when nobody says so.

    Raises:
        SourceError: The file cannot be read.
        BundleError: Not whole, not vouched for, or not for this machine.
        ModelError: It does not load, or may not be; of several variants none does well here.
        ConfigError: ``listen`` is insecure, or taken, or there is nowhere to unpack the bundle.
    """
    facts = bundle_facts(listen, ops, keyring)
    waiver = admit(security_gate(facts), reason)
    warn_of_expiry(facts)
    stop = Stop()
    with unpacking_folder() as folder:
        bundle, model = load_bundle(path, Path(folder), keyring)
    slot = Slot(bundle.name)
    slot.swap(model, keep_previous=False)
    slots, guard = {bundle.name: slot}, Guard(listen)
    app = App(slots, waiver=waiver, body_bytes=listen.body_bytes)
    server = await serve(
        app,
        unix_socket=Path(listen.unix_socket) if listen.unix_socket else None,
        host=listen.host,
        port=listen.port,
        guard=guard,
        ops=ops,
        insecure=waiver is not None,
        grace_seconds=listen.grace_seconds,
    )
    on_hangup(lambda: reload(server, bundle_facts(listen, ops, keyring), waiver))
    async with answering_calls(app, slots, listen, guard) as calls:
        _tell(bundle, listen, server)
        with reminding(waiver):
            await _run(slot, notifier, Listeners(app, server, calls, listen), stop)


async def _run(slot: Slot, notifier: Notifier, listeners: Listeners, stop: Stop) -> None:
    work = [asyncio.create_task(_roll(slot))]
    model = slot.active
    if model is not None:
        notifier.ready(f"serves {slot.name} {model.version}")
    work += watch(notifier, {slot.name: slot}, dead=list)
    try:
        await until_stopped(stop, *work)
    finally:
        notifier.stopping("finishes what is in flight")
        for task in work:
            task.cancel()
        await listeners.end(stop)
        await slot.close()


def _tell(bundle: TrustedBundle, listen: ServeConfig, server: RunningServer) -> None:
    scheme = "https" if listen.tls_certificate is not None else "http"
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    place = f"{scheme}://{host}:{server.port}/v1/models/{bundle.name}:predict"
    tell_ports(server, f"serving {bundle.name} {bundle.version} on {place}")
    if bundle.signed_by is None:
        logger.warning(
            "no signature was checked: give --keyring and --owner to require one",
            extra={"event": "unsigned"},
        )


async def _roll(slot: Slot) -> None:
    while True:
        await asyncio.sleep(WINDOW_SECONDS)
        slot.roll()
