"""Reports as builds give them, made up so that every part of a page has something to show."""

from __future__ import annotations

from typing import Any

from edgepack_contract.description import Metric
from edgepack_contract.hardware import Hardware
from edgepack_packager.report.schema import (
    BundleName,
    CandidateReport,
    ConfusionReport,
    DataFacts,
    GateReport,
    Interval,
    LatencyReport,
    LayerReport,
    Repeat,
    Report,
    SliceReport,
    SourceFacts,
    TargetReport,
    WorstReport,
)

EVIL = '<script>alert("x")</script>\'&"'
HOST = Hardware(
    os="linux", architecture="amd64", variant=None, features=["avx2", "x86-64-v3"], cores=2,
    memory_bytes=8 << 30, model="Some Processor", onnxruntime="1.31.1",
)  # fmt: skip


def candidate(name: str = "int8-static", **changes: Any) -> CandidateReport:
    """A candidate with everything in it."""
    fields: dict[str, Any] = {
        "name": name,
        "plan": {"name": name, "precision": "int8-static", "operators": ["Conv", "Gemm"]},
        "size_bytes": 30_000,
        "size_ratio": 0.27,
        "quantized_share": 0.98,
        "latency_ms": LatencyReport(p50_ms=0.05, p95_ms=0.06, p99_ms=0.09),
        "memory_bytes": 80 << 20,
        "headline": "accuracy 0.9610 (0.9400..0.9760, n=540)",
        "metrics": (
            Metric(
                name="accuracy", value=0.961, n=540, low=0.94, high=0.976, confidence=0.95,
                dataset="evaluation",
            ),
        ),
        "loss_metric": "accuracy",
        "loss": Interval(value=0.002, low=-0.004, high=0.008, n=540),
        "slices": tuple(
            SliceReport(
                column="season", value=value, n=n, metric="accuracy",
                estimate=Interval(value=0.9, low=0.8, high=0.95, n=n),
                loss=Interval(value=loss, low=loss - 0.02, high=loss + 0.02, n=n),
            )
            for value, n, loss in (("winter", 60, 0.03), ("summer", 300, -0.001), (EVIL, 180, 0.0))
        ),
        "worst": (WorstReport(row=17, truth="3", source="3", candidate=EVIL, distance=0.4),),
        "confusions": (
            ConfusionReport(source="3", candidate=EVIL, n=4),
            ConfusionReport(source="9", candidate="3", n=1),
        ),
        "layers": tuple(
            LayerReport(
                node=f"layer{n}/Gemm", operator="Gemm", sqnr_db=12.0 + 2 * n, weight_bytes=4096
            )
            for n in range(24)
        ),
        "gates": (
            GateReport(
                gate="max-drop", metric="accuracy", severity="accuracy", threshold=0.01,
                unit="points", outcome="pass", words="accuracy loss 0.002 within 0.01", excess=0.0,
            ),
            GateReport(
                gate="max-latency", metric="latency", severity="budget", threshold=5.0, unit="ms",
                outcome="not_measured", words="latency at most 5 ms: not measured here", excess=0.0,
            ),
        ),
        "judged_on_all": True,
        "ships_as": None,
        "chosen": False,
        "reason": "inside all gates; another is better for latency",
    }  # fmt: skip
    return CandidateReport(**{**fields, **changes})


def failed_gate(words: str = "accuracy loss 0.2 is over 0.01") -> GateReport:
    """A gate that a candidate is outside of."""
    return GateReport(
        gate="max-drop", metric="accuracy", severity="accuracy", threshold=0.01, unit="points",
        outcome="fail", words=words, excess=19.0,
    )  # fmt: skip


def target(*candidates: CandidateReport, **changes: Any) -> TargetReport:
    """A target; one of the candidates must be chosen."""
    chosen = next(item.name for item in candidates if item.chosen)
    fields: dict[str, Any] = {
        "target": "generic-amd64",
        "title": "Any 64-bit PC",
        "architecture": "amd64",
        "features": (),
        "measured_on": HOST,
        "measured_here": True,
        "chosen": chosen,
        "candidates": candidates,
    }
    return TargetReport(**{**fields, **changes})


def candidates() -> tuple[CandidateReport, ...]:
    """One of every kind: in float, chosen, outside a gate, and without any figure."""
    return (
        candidate(
            "fp32", plan={"name": "fp32", "precision": "fp32"}, size_bytes=110_000, size_ratio=1.0,
            quantized_share=0.0, loss=Interval(value=0.0, low=-0.003, high=0.003, n=540), slices=(),
            worst=(), confusions=(), layers=(), ships_as="generic-amd64-fp32",
        ),
        candidate(chosen=True, ships_as="generic-amd64", reason="chosen: 0.27x the size"),
        candidate(
            "int8-dynamic", size_bytes=31_000, gates=(failed_gate(),), reason=EVIL,
            latency_ms=LatencyReport(p50_ms=0.31, p95_ms=0.4, p99_ms=0.5),
            loss=Interval(value=0.2, low=0.1, high=0.3, n=540), judged_on_all=False,
        ),
        candidate(
            "int8-weights", latency_ms=None, loss=None, metrics=(), slices=(), worst=(),
            confusions=(), layers=(), gates=(), memory_bytes=None,
        ),
    )  # fmt: skip


def report(*targets: TargetReport, **changes: Any) -> Report:
    """A report; of one target with every kind of candidate, unless others are given."""
    fields: dict[str, Any] = {
        "bundle": BundleName(name="digits", version="1.0.0", digest=f"sha256:{'a' * 64}"),
        "host": HOST,
        "tools": {"edgepack": "0.1.0", "onnx": "1.23.2"},
        "source": SourceFacts(
            digest=f"sha256:{'5' * 64}", framework="scikit-learn 1.7", task="classification",
            passes=("fold", "lower-opset"),
        ),
        "data": DataFacts(
            digests={"data": f"sha256:{'6' * 64}", "split": "seed 0: 134 to 540"},
            calibration_rows=134, evaluation_rows=540, reference_rows=225, labelled=True,
            missing=False,
        ),
        "seconds": {"load": 1.2, "search": 3.4},
        "warnings": ("the bundle is not signed", EVIL),
        "targets": targets or (target(*candidates()),),
        "repeat": Repeat(command="edgepack build m.onnx", recipe='model = "m.onnx"\n'),
    }  # fmt: skip
    return Report(**{**fields, **changes})
