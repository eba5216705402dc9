"""From a bundle's file to the model in it that serves here."""

from __future__ import annotations

import logging
from pathlib import Path

from edgepack_contract.bundle import BundleFile, open_bundle, open_variant
from edgepack_contract.errors import SourceError
from edgepack_contract.hardware import this_machine
from edgepack_contract.keyring import Keyring
from edgepack_contract.trusted import TrustedBundle
from edgepack_contract.unpacked import extract
from edgepack_contract.variants import Variant, alternatives
from edgepack_runtime.inference.errors import ModelLoadError, UnfitModelError
from edgepack_runtime.inference.prescan import prescan
from edgepack_runtime.inference.probe import REFUSING
from edgepack_runtime.inference.session import onnxruntime_version
from edgepack_runtime.inference.variant import read_description
from edgepack_runtime.probing import probe_here
from edgepack_runtime.serving.model import ServingModel

logger = logging.getLogger(__name__)

PROBE_SECONDS = 120.0


def load_bundle(
    path: Path, folder: Path, keyring: Keyring | None, *, threads: int = 1
) -> tuple[TrustedBundle, ServingModel]:
    """Load the first variant that does well here; the only one is loaded without trying it.

    Args:
        path: The bundle.
        folder: Where the variants are laid out; it may go when this returns.
        keyring: Who may sign; None takes anything that is whole.
        threads: Where the bundle leaves them to the device.

    Raises:
        SourceError: The file cannot be read.
        BundleError: Not whole, not vouched for, or not for this machine.
        ModelError: It does not load, or may not be; of several variants none does well here.
    """
    machine = this_machine(onnxruntime=onnxruntime_version())
    with _open(path) as file:
        bundle = open_bundle(file, file.digest, keyring=keyring)
        fitting = alternatives(bundle.index, machine)
        reasons = []
        for variant in fitting:
            place = folder / variant.name
            place.mkdir()
            extract(open_variant(bundle, file, variant), file, place)
            reason = _misgiving(variant, place) if len(fitting) > 1 else None
            if reason is None:
                prescan(place, read_description(place))
                return bundle, ServingModel.load(place, bundle.digest, default_threads=threads)
            logger.warning(
                "variant %s does not do here: %s", variant.name, reason,
                extra={"event": "variant_passed_over", "variant": variant.name},
            )  # fmt: skip
            reasons.append(f"{variant.name}: {reason}")
    raise ModelLoadError(f"no variant of {bundle.name} does well here: {'; '.join(reasons)}")


def _misgiving(variant: Variant, place: Path) -> str | None:
    """Why a variant does not do, None when it does.

    Raises:
        UnfitModelError: Its graph must not be, which speaks against the whole bundle.
    """
    result = probe_here(place, timeout_s=PROBE_SECONDS, rounds=1)
    if result.code in REFUSING:
        raise UnfitModelError(f"variant {variant.name}: {result.words}", code=result.code)
    return None if result.ok else f"{result.code}: {result.words}"


def _open(path: Path) -> BundleFile:
    try:
        return BundleFile.open(path)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", code="no-file") from error
