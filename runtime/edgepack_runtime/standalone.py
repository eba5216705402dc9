"""One bundle, served to this machine with no fleet at all: ``edgepack run --bundle``."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.bundle import BundleFile, copy_blob, open_bundle, open_variant
from edgepack_contract.errors import SourceError
from edgepack_contract.hardware import this_machine
from edgepack_contract.keyring import Keyring
from edgepack_contract.trusted import TrustedBundle
from edgepack_contract.variants import select_variant
from edgepack_runtime.process import stop_event, until_stopped
from edgepack_runtime.serving.app import App
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.server import serve
from edgepack_runtime.serving.slot import Slot

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to serve; loopback only."""

    host: str
    port: int
    unix_socket: Path | None


async def run_bundle(path: Path, listen: Listen, keyring: Keyring | None) -> None:
    """Serve one bundle until SIGTERM or SIGINT.

    Args:
        path: The bundle.
        listen: Where.
        keyring: Who may sign; None serves anything that is whole, which is why only this machine
            is served.

    Raises:
        SourceError: The file cannot be read.
        BundleError: Not whole, not vouched for, or not for this machine.
        ModelLoadError: It does not load.
        ConfigError: ``listen`` is not loopback, or taken.
    """
    stop = stop_event()
    with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
        bundle = _extract(path, Path(folder), keyring)
        model = ServingModel.load(Path(folder), bundle.digest)
    slot = Slot(bundle.name)
    slot.swap(model, keep_previous=False)
    server = await serve(
        App({bundle.name: slot}),
        unix_socket=listen.unix_socket,
        host=listen.host,
        port=listen.port,
    )
    _tell(bundle, listen.host, server.port)
    windows = asyncio.create_task(_roll(slot))
    try:
        await until_stopped(stop, windows)
    finally:
        windows.cancel()
        await server.stop()
        await slot.close()


def _extract(path: Path, folder: Path, keyring: Keyring | None) -> TrustedBundle:
    machine = this_machine(onnxruntime=importlib.metadata.version("onnxruntime"))
    with _open(path) as file:
        bundle = open_bundle(file, file.digest, keyring=keyring)
        variant = open_variant(bundle, file, select_variant(bundle.index, machine)[0])
        for name, layer in variant.layers.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as target:
                copy_blob(layer, file, target, what=name)
    return bundle


def _open(path: Path) -> BundleFile:
    try:
        return BundleFile.open(path)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", code="no-file") from error


def _tell(bundle: TrustedBundle, host: str, port: int | None) -> None:
    logger.info(
        "serving %s %s on http://%s:%s/v1/models/%s:predict",
        bundle.name, bundle.version, f"[{host}]" if ":" in host else host, port, bundle.name,
        extra={"event": "serving"},
    )  # fmt: skip
    if bundle.signed_by is None:
        logger.warning(
            "no signature was checked: give --keyring and --owner to require one",
            extra={"event": "unsigned"},
        )


async def _roll(slot: Slot) -> None:
    while True:
        await asyncio.sleep(WINDOW_SECONDS)
        slot.roll()
