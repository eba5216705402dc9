"""Try the variants of a bundle on this machine, each in a child that bears what may go wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack_contract import __version__
from edgepack_contract.benchmark import Benchmark, VariantBench, model_digest
from edgepack_contract.bundle import BlobSource, open_variant
from edgepack_contract.description import Precision
from edgepack_contract.errors import UnsupportedBundleError
from edgepack_contract.hardware import Hardware
from edgepack_contract.oci import ImageIndex
from edgepack_contract.trusted import TrustedBundle, TrustedVariant
from edgepack_contract.unpacked import extract
from edgepack_contract.variants import Variant, misfit, read_variants
from edgepack_runtime.inference.probe import ROUNDS, ProbeResult, probe_model

PROBE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One variant, and what became of it in the child."""

    variant: TrustedVariant
    result: ProbeResult

    @property
    def precision(self) -> Precision:
        """What its weights are stored in."""
        return self.variant.description.precision


@dataclass(frozen=True, slots=True)
class Settings:
    """How variants are tried.

    Attributes:
        threads: Threads of a session where the description leaves them to the device.
        rounds: How often latency is measured; 0 for golden rows alone.
        timeout_s: The most seconds that one variant may take.
    """

    threads: int = 1
    rounds: int = ROUNDS
    timeout_s: float = PROBE_SECONDS


def named_variant(index: ImageIndex, host: Hardware, name: str) -> Variant:
    """The variant of that name.

    Raises:
        UnsupportedBundleError: There is none, or it does not fit ``host``.
    """
    variants = {variant.name: variant for variant in read_variants(index)}
    if name not in variants:
        raise UnsupportedBundleError(
            f"there is no variant {name[:80]!r}; the bundle has {', '.join(variants)}",
            code="no-variant",
        )
    reason = misfit(variants[name], host)
    if reason is not None:
        raise UnsupportedBundleError(
            f"variant {name} does not fit this machine: {reason}", code="no-variant"
        )
    return variants[name]


def try_variants(
    bundle: TrustedBundle,
    source: BlobSource,
    variants: Sequence[Variant],
    settings: Settings,
    tell: Callable[[str], None],
) -> list[Attempt]:
    """Load, check and measure variants, one after the other.

    Args:
        bundle: The bundle.
        source: Where its bytes are; every file is proven while it is laid out.
        variants: Some of its variants.
        settings: How.
        tell: Called with the name of each variant before its turn.

    Raises:
        MalformedBundleError: A file is not what the bundle names.
        OSError: There is no room to lay a variant out.
    """
    attempts = []
    for variant in variants:
        tell(variant.name)
        attempts.append(_attempt(open_variant(bundle, source, variant), source, settings))
    return attempts


def benchmark(
    bundle: TrustedBundle, attempts: Sequence[Attempt], host: Hardware, settings: Settings
) -> Benchmark:
    """What was measured, as ``edgepack build --measured`` reads it."""
    return Benchmark(
        edgepack=__version__,
        name=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        host=host,
        threads=settings.threads,
        rounds=settings.rounds,
        variants=[_entry(attempt) for attempt in attempts],
    )


def _attempt(variant: TrustedVariant, source: BlobSource, settings: Settings) -> Attempt:
    with TemporaryDirectory(prefix="edgepack-try-") as folder:
        extract(variant, source, Path(folder))
        result = probe_model(
            Path(folder),
            timeout_s=settings.timeout_s,
            threads=settings.threads,
            rounds=settings.rounds,
        )
    return Attempt(variant, result)


def _entry(attempt: Attempt) -> VariantBench:
    result = attempt.result
    files = {path: layer.digest for path, layer in attempt.variant.layers.items()}
    return VariantBench(
        variant=attempt.variant.variant.name,
        model_digest=model_digest(files),
        code=result.code,
        words=result.words,
        p50_ms=result.p50_ms,
        p95_ms=result.p95_ms,
        p99_ms=result.p99_ms,
        load_ms=result.load_ms,
        peak_bytes=result.peak_bytes,
        model_bytes=result.model_bytes,
        rows=result.rows,
    )
