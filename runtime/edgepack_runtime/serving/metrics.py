"""``/metrics`` in the text format of Prometheus: base units, one prefix, totals that only grow.

Source: prometheus.io/docs/instrumenting/exposition_formats, text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

from edgepack_contract import __version__
from edgepack_runtime.serving.counting import SECONDS_BUCKETS
from edgepack_runtime.serving.slot import Slot

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PAGE_BYTES = 4096

Labels = dict[str, str]
Sample = tuple[str, Labels, float]


def render_metrics(
    slots: Mapping[str, Slot],
    uptime_seconds: float,
    *,
    insecure: bool = False,
    refusals: Mapping[str, int] | None = None,
) -> bytes:
    """The metrics of a daemon.

    ``insecure`` is whether it runs in spite of its security gate, ``refusals`` how many documents
    it refused, by code.
    """
    families = [
        _family("info", "gauge", "The daemon.", [("", {"version": __version__}, 1)]),
        _family(
            "insecure", "gauge", "Running in spite of the security gate.", [("", {}, int(insecure))]
        ),
        _family("uptime_seconds", "gauge", "Since the start.", [("", {}, uptime_seconds)]),
        _family(
            "resident_memory_bytes", "gauge", "Of the daemon's process.", [("", {}, _resident())]
        ),
        _family(
            "refused_documents_total",
            "counter",
            "Desired documents and keyrings that were not obeyed, by code.",
            [("", {"code": code}, count) for code, count in sorted((refusals or {}).items())],
        ),
    ]
    for name, kind, text, samples in _slot_families(slots):
        families.append(_family(name, kind, text, samples))
    return "".join(families).encode()


def _slot_families(slots: Mapping[str, Slot]) -> Iterator[tuple[str, str, str, list[Sample]]]:
    each = sorted(slots.items())
    yield "model_info", "gauge", "The model that answers.", [_info(slot) for _, slot in each]
    yield (
        "requests_total", "counter", "Requests answered with a prediction.",
        [("", {"slot": name}, slot.totals.answered) for name, slot in each],
    )  # fmt: skip
    yield (
        "rows_total", "counter", "Rows in those requests.",
        [("", {"slot": name}, slot.totals.rows) for name, slot in each],
    )  # fmt: skip
    yield (
        "errors_total", "counter", "Requests refused or failed, by kind.",
        [
            ("", {"slot": name, "kind": kind}, count)
            for name, slot in each
            for kind, count in slot.totals.errors.items()
        ],
    )  # fmt: skip
    yield (
        "unavailable_total", "counter", "Requests that found no model.",
        [("", {"slot": name}, slot.totals.unavailable) for name, slot in each],
    )  # fmt: skip
    yield (
        "swaps_total", "counter", "Changes of the model.",
        [("", {"slot": name}, slot.totals.swaps) for name, slot in each],
    )  # fmt: skip
    yield (
        "in_flight_requests", "gauge", "Requests being answered.",
        [("", {"slot": name}, slot.in_flight) for name, slot in each],
    )  # fmt: skip
    yield (
        "request_seconds", "histogram", "From the body's last byte to the encoded answer.",
        [sample for _, slot in each for sample in _histogram(slot)],
    )  # fmt: skip


def _info(slot: Slot) -> Sample:
    model = slot.active
    return (
        "",
        {
            "slot": slot.name,
            "model": model.description.name if model else "",
            "version": model.version if model else "",
            "digest": model.digest if model else "",
        },
        0 if model is None else 1,
    )


def _histogram(slot: Slot) -> list[Sample]:
    name = {"slot": slot.name}
    bounds = [f"{bound:g}" for bound in SECONDS_BUCKETS] + ["+Inf"]
    samples: list[Sample] = [
        ("_bucket", name | {"le": bound}, count)
        for bound, count in zip(bounds, accumulate(slot.totals.buckets), strict=True)
    ]
    return [
        *samples,
        ("_sum", name, slot.totals.seconds),
        ("_count", name, slot.totals.answered),
    ]


def _family(name: str, kind: str, text: str, samples: list[Sample]) -> str:
    lines = [f"# HELP edgepack_{name} {text}", f"# TYPE edgepack_{name} {kind}"]
    lines += [
        f"edgepack_{name}{suffix}{_labels(labels)} {value}" for suffix, labels, value in samples
    ]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
