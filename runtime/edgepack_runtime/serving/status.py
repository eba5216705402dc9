"""What a daemon tells about itself over HTTP: health, statistics, and a page for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from edgepack_contract import __version__
from edgepack_contract.description import TensorSpec
from edgepack_contract.gate import Waiver
from edgepack_contract.states import Phase
from edgepack_runtime.serving.markup import escaped
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.residents import Tenure
from edgepack_runtime.serving.slot import Slot

PhaseOf = Callable[[str], Phase | None]


def is_ready(slots: Mapping[str, Slot]) -> bool:
    """Whether there is a slot, and every slot would answer."""
    return bool(slots) and all(slot.ready for slot in slots.values())


def health(
    slots: Mapping[str, Slot], phase_of: PhaseOf, uptime_seconds: float, waiver: Waiver | None
) -> dict[str, Any]:
    """The content of ``/health``; ``waiver`` is why it runs although it is insecure."""
    ready = is_ready(slots)
    return {
        "status": "ok" if ready else "degraded" if slots else "no models",
        "edgepack": __version__,
        "uptime_seconds": round(uptime_seconds, 3),
        "insecure": waived(waiver) if waiver else None,
        "slots": {name: _slot(slot, phase_of(name)) for name, slot in sorted(slots.items())},
    }


def waived(waiver: Waiver) -> dict[str, object]:
    """What is said of a waiver: settings, but no paths."""
    return {"reason": waiver.reason, "settings": waiver.settings}


def model_stats(slot: Slot, tenure: Tenure) -> dict[str, Any]:
    """One entry of ``model_stats`` of the statistics extension.

    Source: github.com/triton-inference-server/server, ``docs/protocol/extension_statistics.md``.
    Clients read every key, also those that do not apply here.
    """
    counts = tenure.counts
    done, spent = counts.executions, counts.spent
    total = spent.queue + spent.input + spent.infer + spent.output
    return {
        "name": slot.name,
        "version": tenure.model.version,
        "last_inference": slot.last_prediction_ms or 0,
        "inference_count": counts.rows,
        "execution_count": done,
        "inference_stats": {
            "success": _stat(done, total),
            "fail": _stat(counts.requests - done, counts.failed_ns),
            "queue": _stat(done, spent.queue),
            "compute_input": _stat(done, spent.input),
            "compute_infer": _stat(done, spent.infer),
            "compute_output": _stat(done, spent.output),
            "cache_hit": _stat(0, 0),
            "cache_miss": _stat(0, 0),
        },
        "batch_stats": tenure.batcher.stats() if tenure.batcher is not None else [],
        "memory_usage": [],
        "response_stats": {},
    }


def tenures(slot: Slot) -> list[Tenure]:
    """The models that can be asked: the active one, and a candidate beside it."""
    return [one for one in (slot.tenure, slot.candidate.tenure) if one is not None]


def model_info(name: str, model: ServingModel) -> dict[str, Any]:
    """What a model is, takes and gives, in the words of its bundle: ``/model/info``."""
    described = model.description
    return {
        "name": name,
        "model": described.name,
        "version": described.version,
        "digest": model.digest,
        "task": described.task,
        "variant": described.variant,
        "precision": described.precision,
        "inputs": [_tensor(spec) for spec in described.inputs],
        "outputs": [_tensor(spec) for spec in described.outputs],
        "dimensions": msgspec.to_builtins(described.dimensions),
        "on_nonfinite": described.on_nonfinite,
        "budgets": msgspec.to_builtins(described.budgets),
        "metrics": msgspec.to_builtins(described.metrics),
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    told = {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
    told |= {"role": spec.role, "kind": spec.kind}
    return told | {"features": spec.features, "labels": spec.labels}


def page(told: Mapping[str, Any]) -> str:
    """``/health`` as a page."""
    columns = ("ready", "model", "version", "digest", "phase", "last_prediction", "requests")
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("slot", *columns))
    rows = "".join(
        f"<tr><td>{escaped(name)}</td>"
        + "".join(f"<td>{_cell(slot[column])}</td>" for column in columns)
        + "</tr>"
        for name, slot in told["slots"].items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><title>edgepack</title>"
        "<style>body{font:16px system-ui;margin:2rem;color-scheme:light dark}"
        "td,th{padding:.3rem .8rem;text-align:left;word-break:break-all}</style>"
        f"<h1>edgepack {escaped(told['edgepack'])}</h1>"
        f"<p>Status: {escaped(told['status'])}, up {told['uptime_seconds']:.0f} s.</p>"
        f"{_warning(told['insecure'])}"
        f"<table><tr>{head}</tr>{rows}</table>"
        "<p><a href=/health>health</a> · <a href=/metrics>metrics</a> · "
        "<a href=/docs>docs</a></p></html>"
    )


def _warning(insecure: Mapping[str, Any] | None) -> str:
    if insecure is None:
        return ""
    settings = escaped(", ".join(insecure["settings"]))
    return f"<p><strong>Insecure: {settings}.</strong> {escaped(insecure['reason'])}</p>"


def _slot(slot: Slot, phase: Phase | None) -> dict[str, Any]:
    tenure, previous = slot.tenure, slot.previous
    told: dict[str, Any] = {
        "ready": slot.ready,
        "unloaded": slot.unloaded,
        "model": None,
        "version": None,
        "digest": None,
        "since": None,
        "phase": phase,
        "candidate": _candidate(slot),
        "previous": previous.digest if previous is not None else None,
        "last_prediction": _time(slot.last_prediction_ms),
        "requests": slot.totals.answered,
    }
    if tenure is not None:
        told |= {
            "model": tenure.model.description.name,
            "version": tenure.model.version,
            "digest": tenure.model.digest,
            "since": _time(tenure.since_ms),
        }
    return told


def _candidate(slot: Slot) -> dict[str, Any] | None:
    model = slot.candidate.active
    if model is None:
        return None
    told = {"version": model.version, "digest": model.digest}
    return told | {"mode": slot.candidate.mode, "share": slot.candidate.share}


def _time(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _stat(count: int, nanoseconds: int) -> dict[str, int]:
    return {"count": count, "ns": nanoseconds}


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case _:
            return escaped(value)
