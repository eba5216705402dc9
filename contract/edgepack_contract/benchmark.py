"""What ``edgepack bench`` measured on a device, as ``edgepack build --measured`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from edgepack_contract.canonical import canonical_json, decode
from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH, Count, DigestText, Name
from edgepack_contract.digest import sha256_digest
from edgepack_contract.hardware import Hardware
from edgepack_contract.limits import LIMITS

SCHEMA: Literal["edgepack-bench/1"] = "edgepack-bench/1"

Milliseconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class VariantBench(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant on one device.

    Attributes:
        variant: Its name in the bundle.
        model_digest: See :func:`model_digest`.
        code: Empty when its golden rows are right and it was measured, else why not.
        words: The same for people.
        p50_ms: Half of the runs of one row took at most so long; None when it was not measured.
        p95_ms: The same for 95 of 100.
        p99_ms: The same for 99 of 100.
        load_ms: How long it took to load.
        peak_bytes: The most memory that the process held.
        model_bytes: How much of that the model added.
        rows: How many golden rows were checked.
    """

    variant: Name
    model_digest: DigestText
    code: Annotated[str, msgspec.Meta(max_length=64)] = ""
    words: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    p50_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    load_ms: Milliseconds | None = None
    peak_bytes: Count | None = None
    model_bytes: Count | None = None
    rows: Count = 0


class Benchmark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The variants of one bundle, measured one after the other on one device.

    ``threads`` are those of a session whose description leaves them to the device. ``rounds`` is
    how often each variant was measured; its figures are those of the round with the lowest p95.
    """

    schema: Literal["edgepack-bench/1"] = SCHEMA
    edgepack: Annotated[str, msgspec.Meta(max_length=64)]
    name: Name
    version: Name
    digest: DigestText
    host: Hardware
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    variants: Annotated[list[VariantBench], msgspec.Meta(min_length=1, max_length=LIMITS.variants)]


def model_digest(files: Mapping[str, str]) -> str:
    """The digest that tells one model from another, whatever else travels with it.

    Args:
        files: Digests of a variant's files by path; all but the graph and its weights are ignored.
    """
    model = {path: files[path] for path in (MODEL_PATH, MODEL_DATA_PATH) if path in files}
    return sha256_digest(canonical_json(model))


def read_benchmark(raw: bytes) -> Benchmark:
    """Decode what ``edgepack bench --json`` printed.

    Raises:
        MalformedDocumentError: Too large, not JSON, or a field is unknown, missing or out of range.
    """
    return decode(raw, Benchmark, what="benchmark", max_bytes=LIMITS.message_bytes)
