"""Figures that ``edgepack bench --json`` took on a device, for a build on another machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgepack_contract.benchmark import Benchmark, VariantBench, read_benchmark
from edgepack_contract.errors import MalformedDocumentError
from edgepack_contract.hardware import Hardware
from edgepack_contract.limits import LIMITS
from edgepack_packager.errors import InputError
from edgepack_packager.targets import DeviceConfig
from edgepack_runtime.inference.trial import Latency


@dataclass(frozen=True, slots=True)
class Measured:
    """What a device says of candidates.

    Attributes:
        host: The device; None when no file is of this kind of hardware.
        variants: Its figures by digest of the model.
    """

    host: Hardware | None = None
    variants: Mapping[str, VariantBench] = field(default_factory=dict)

    def latency(self, digest: str) -> Latency | None:
        """Milliseconds of one row of the model with this digest, where they were measured."""
        found = self.variants.get(digest)
        if found is None or found.p50_ms is None or found.p95_ms is None or found.p99_ms is None:
            return None
        return Latency(found.p50_ms, found.p95_ms, found.p99_ms)

    def memory_bytes(self, digest: str) -> int | None:
        """Peak memory of a process that serves the model with this digest."""
        found = self.variants.get(digest)
        return None if found is None else found.peak_bytes

    def failed(self, digest: str) -> str:
        """Why the device refused the model with this digest; empty when it did not."""
        found = self.variants.get(digest)
        return "" if found is None or not found.code else f"{found.code}: {found.words}"


def read_measured(paths: Sequence[Path]) -> list[tuple[Path, Benchmark]]:
    """Read what ``edgepack bench --json`` wrote.

    Raises:
        InputError: A file cannot be read, or is not such a document.
    """
    found = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                found.append((path, read_benchmark(stream.read(LIMITS.message_bytes + 1))))
        except (OSError, MalformedDocumentError) as error:
            raise InputError(
                f"{path} is not what edgepack bench --json writes: {error}", code="bad-measured"
            ) from error
    return found


def measured_on(target: DeviceConfig, benchmarks: Sequence[tuple[Path, Benchmark]]) -> Measured:
    """What devices of the target's kind measured; where several did, the last file wins."""
    hosts = [benchmark for _, benchmark in benchmarks if target.is_this(benchmark.host)]
    if not hosts:
        return Measured()
    variants = {item.model_digest: item for one in hosts for item in one.variants}
    return Measured(hosts[-1].host, variants)


def strangers(
    benchmarks: Sequence[tuple[Path, Benchmark]], targets: Sequence[DeviceConfig]
) -> list[str]:
    """A warning for every file of a device that is none of the targets."""
    return [
        f"{path} was measured on {benchmark.host.model} ({benchmark.host.architecture}), which is "
        f"none of {', '.join(target.name for target in targets)}; it was not used"
        for path, benchmark in benchmarks
        if not any(target.is_this(benchmark.host) for target in targets)
    ]


def unknown_models(
    benchmarks: Sequence[tuple[Path, Benchmark]], digests: Collection[str]
) -> list[str]:
    """A warning when devices measured models that this build has no candidate for.

    Args:
        benchmarks: The files.
        digests: Those of the models of all candidates.
    """
    others = sorted(
        {
            item.variant
            for _, one in benchmarks
            for item in one.variants
            if item.model_digest not in digests
        }
    )
    if not others:
        return []
    words = (
        f"measured variants {', '.join(others)} are no candidates of this build: another model, "
        "other data or other tool versions made them; their figures were not used"
    )
    return [words]
