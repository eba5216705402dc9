"""``/metrics`` in the text format of Prometheus: base units, one prefix, totals that only grow.

Sources: prometheus.io/docs/instrumenting/exposition_formats, text format 0.0.4, and
prometheus.io/docs/instrumenting/writing_clientlibs for what every process tells of itself.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

from edgepack_contract import __version__
from edgepack_runtime.inference.session import onnxruntime_version
from edgepack_runtime.serving.counting import SECONDS_BUCKETS
from edgepack_runtime.serving.residents import Tenure
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.serving.status import PhaseOf, tenures
from edgepack_runtime.telemetry.backlog import Backlog

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[str, Labels, float]
Family = tuple[str, str, str, list[Sample]]


def render_metrics(
    slots: Mapping[str, Slot],
    uptime_seconds: float,
    *,
    insecure: bool = False,
    refusals: Mapping[str, int] | None = None,
    phase_of: PhaseOf = lambda _slot: None,
    backlog: Backlog | None = None,
    asked_by_mqtt: Mapping[str, int] | None = None,
) -> bytes:
    """The metrics of a daemon.

    ``insecure`` is whether it runs in spite of its security gate, ``refusals`` how many documents
    it refused, by code, ``backlog`` what waits for the fleet, ``asked_by_mqtt`` how many requests
    came by the broker, by what became of them.
    """
    each = sorted(slots.items())
    families = [
        *_daemon_families(uptime_seconds, int(insecure), refusals or {}),
        *_slot_families(each, phase_of),
        *_model_families(each),
        *(_backlog_families(backlog) if backlog is not None else ()),
        *(_mqtt_families(asked_by_mqtt) if asked_by_mqtt is not None else ()),
        *_process_families(),
    ]
    return "".join(_text(*family) for family in families).encode()


def _daemon_families(
    uptime_seconds: float, insecure: int, refusals: Mapping[str, int]
) -> Iterator[Family]:
    versions = {"version": __version__, "onnxruntime": onnxruntime_version()}
    yield "edgepack_info", "gauge", "The daemon.", [("", versions, 1)]
    yield (
        "edgepack_insecure", "gauge", "Running in spite of the security gate.",
        [("", {}, insecure)],
    )  # fmt: skip
    yield "edgepack_uptime_seconds", "gauge", "Since the start.", [("", {}, uptime_seconds)]
    yield (
        "edgepack_refused_documents_total",
        "counter",
        "Desired documents and keyrings that were not obeyed, by code.",
        [("", {"code": code}, count) for code, count in sorted(refusals.items())],
    )


def _mqtt_families(asked: Mapping[str, int]) -> Iterator[Family]:
    yield (
        "edgepack_mqtt_requests_total",
        "counter",
        "Requests that came by the broker, by what became of them.",
        [("", {"result": result}, count) for result, count in sorted(asked.items())],
    )


def _slot_families(each: list[tuple[str, Slot]], phase_of: PhaseOf) -> Iterator[Family]:
    for name, kind, text, value in (
        ("ready", "gauge", "Whether a request would be answered.", lambda one: int(one.ready)),
        ("requests_total", "counter", "Requests answered with a prediction.",
         lambda one: one.totals.answered),
        ("rows_total", "counter", "Rows in those requests.", lambda one: one.totals.rows),
        ("unavailable_total", "counter", "Requests that found no model.",
         lambda one: one.totals.unavailable),
        ("swaps_total", "counter", "Changes of the model.", lambda one: one.totals.swaps),
        ("in_flight_requests", "gauge", "Requests being answered.", lambda one: one.in_flight),
        ("waiting_requests", "gauge", "Requests that a thread has, or is to take.",
         lambda one: one.waiting),
    ):  # fmt: skip
        yield (
            f"edgepack_{name}", kind, text,
            [("", {"slot": name}, value(slot)) for name, slot in each],
        )  # fmt: skip
    yield (
        "edgepack_errors_total", "counter", "Requests refused or failed, by kind.",
        [
            ("", {"slot": name, "kind": kind}, count)
            for name, slot in each
            for kind, count in slot.totals.errors.items()
        ],
    )  # fmt: skip
    yield (
        "edgepack_request_seconds", "histogram", "From the body's last byte to the encoded answer.",
        [sample for _, slot in each for sample in _histogram(slot)],
    )  # fmt: skip
    phases = [(name, phase_of(name)) for name, _ in each]
    yield (
        "edgepack_slot_phase", "gauge", "Where the installation of the slot stands.",
        [("", {"slot": name, "phase": phase}, 1) for name, phase in phases if phase is not None],
    )  # fmt: skip


def _model_families(each: list[tuple[str, Slot]]) -> Iterator[Family]:
    models = [(slot, tenure) for _, slot in each for tenure in tenures(slot)]
    yield (
        "edgepack_model_info", "gauge", "The models that are loaded, and what each is for.",
        [("", _model(slot, tenure), 1) for slot, tenure in models],
    )  # fmt: skip
    yield (
        "edgepack_model_runs_total", "counter", "Runs of a model that is loaded.",
        [("", _role(slot, tenure), tenure.counts.executions) for slot, tenure in models],
    )  # fmt: skip
    yield (
        "edgepack_model_step_seconds_total", "counter", "Spent on its requests, by step.",
        [
            ("", _role(slot, tenure) | {"step": step}, getattr(tenure.counts.spent, step) / 1e9)
            for slot, tenure in models
            for step in ("queue", "input", "infer", "output")
        ],
    )  # fmt: skip
    yield (
        "edgepack_model_since_seconds", "gauge", "When the model took its place, Unix time.",
        [("", _role(slot, tenure), tenure.since_ms / 1e3) for slot, tenure in models],
    )  # fmt: skip


def _backlog_families(backlog: Backlog) -> Iterator[Family]:
    for name, kind, text, value in (
        ("items", "gauge", "Windows and events that wait for the fleet.", backlog.items),
        ("bytes", "gauge", "What they take on the disk.", backlog.bytes),
        ("dropped_items_total", "counter", "Lost for want of room.", backlog.dropped),
    ):
        yield f"edgepack_spool_{name}", kind, text, [("", {}, value)]


def _process_families() -> Iterator[Family]:
    for name, kind, text, value in (
        ("cpu_seconds_total", "counter", "User and system time.", sum(os.times()[:2])),
        ("resident_memory_bytes", "gauge", "Resident memory.", _resident()),
        (
            "open_fds",
            "gauge",
            "Open file descriptors.",
            sum(1 for _ in Path("/proc/self/fd").iterdir()),
        ),
        ("start_time_seconds", "gauge", "When the process began, Unix time.", _started()),
    ):
        yield f"process_{name}", kind, text, [("", {}, value)]


def _role(slot: Slot, tenure: Tenure) -> Labels:
    mode = "active" if tenure is slot.tenure else str(slot.candidate.mode)
    return {"slot": slot.name, "role": mode}


def _model(slot: Slot, tenure: Tenure) -> Labels:
    model = tenure.model
    told = {"model": model.description.name, "version": model.version, "digest": model.digest}
    return _role(slot, tenure) | told


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


def _text(name: str, kind: str, text: str, samples: list[Sample]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{suffix}{_labels(labels)} {value}" for suffix, labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _started() -> float:
    # the name of the program, in parentheses, may hold anything; field 22 is counted from its end
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    booted = next(
        int(line.split()[1])
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()
        if line.startswith("btime ")
    )
    return booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
