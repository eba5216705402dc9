"""``sbom.cdx.json``: what a bundle was made from and holds, as a CycloneDX 1.6 ML-BOM.

Source: CycloneDX 1.6 (ECMA-424), JSON. The same build gives the same bytes: no time of its own, and
a serial number that follows from the bundle's digest (RFC 9562, version 5). The Python library of
the project knows no model cards, so the document is written here and checked against its schema in
tests.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgepack_contract.description import Description, FileEntry, TensorSpec
from edgepack_contract.digest import hex_of
from edgepack_packager.report.schema import CandidateReport, Report

SBOM_PATH = "sbom.cdx.json"

_SERIALS = uuid.uuid5(uuid.NAMESPACE_DNS, "sbom.edgepack.dev")
_RUNTIME = "runtime:onnxruntime"
_SOURCE = "source"

Json = dict[str, Any]


def sbom_of(report: Report, descriptions: Sequence[Description]) -> bytes:
    """The bill of materials of a bundle.

    Args:
        report: The evidence of its build, which names its digest.
        descriptions: Of its variants, with their files.

    Returns:
        UTF-8 JSON with sorted keys.
    """
    bundle, digest = report.bundle, report.bundle.digest or ""
    serial = uuid.uuid5(_SERIALS, f"{bundle.name} {bundle.version} {digest}")
    variants = [_variant(report, description) for description in descriptions]
    data = _data(report)
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [_tool(*tool) for tool in sorted(report.tools.items())]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "bundle",
                "name": bundle.name,
                "version": bundle.version,
                "mime-type": "application/vnd.cncf.model.manifest.v1+json",
                **_hashes(digest),
            },
        },
        "components": [*variants, _source(report), _runtime(descriptions), *data],
        "dependencies": _dependencies(descriptions, [item["bom-ref"] for item in data]),
    }
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _variant(report: Report, description: Description) -> Json:
    platform = description.platform
    return {
        "type": "machine-learning-model",
        "bom-ref": _variant_ref(description),
        "name": f"{description.name} ({description.variant})",
        "version": description.version,
        "description": f"{description.precision} for {platform.os}/{platform.architecture}",
        "components": [_file(description, entry) for entry in description.files],
        "modelCard": _model_card(report, description),
        "pedigree": {
            "ancestors": [_ancestor(report)],
            "notes": "passes: " + (", ".join(description.provenance.passes) or "none"),
        },
        "properties": _properties(
            {
                "precision": description.precision,
                "features": ",".join(description.features),
                "ir-version": str(description.ir_version),
                "opsets": ",".join(f"{name}:{n}" for name, n in sorted(description.opsets.items())),
                "operators": ",".join(description.operators),
                "min-runtime": description.min_runtime,
            }
        ),
    }


def _model_card(report: Report, description: Description) -> Json:
    shipped = _candidate(report, description.variant)
    return {
        "modelParameters": {
            "task": description.task,
            "datasets": [{"ref": item["bom-ref"]} for item in _data(report)],
            "inputs": [{"format": _format(spec)} for spec in description.inputs],
            "outputs": [{"format": _format(spec)} for spec in description.outputs],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [*_metrics(description), *_slices(shipped)],
        },
        "considerations": {
            "technicalLimitations": list(report.warnings),
            "performanceTradeoffs": [] if shipped is None else [shipped.reason],
        },
        "properties": _properties(
            {f"gate:{gate.name}:{gate.metric}": gate.verdict for gate in description.gates}
        ),
    }


def _metrics(description: Description) -> Iterable[Json]:
    for metric in description.metrics:
        against = "" if metric.reference is None else f" against {metric.reference}"
        yield _metric(
            f"{metric.name}{against} (n={metric.n})", metric.value, metric.low, metric.high
        )


def _slices(candidate: CandidateReport | None) -> Iterable[Json]:
    for item in () if candidate is None else candidate.slices:
        figure = item.estimate
        if figure is None or figure.value is None or figure.low is None or figure.high is None:
            continue
        found = _metric(f"{item.metric} (n={figure.n})", figure.value, figure.low, figure.high)
        yield {**found, "slice": f"{item.column}={item.value}"}


def _metric(name: str, value: float, low: float, high: float) -> Json:
    bounds = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
    return {"type": name, "value": f"{value:.6g}", "confidenceInterval": bounds}


def _candidate(report: Report, variant: str) -> CandidateReport | None:
    tried = (item for target in report.targets for item in target.candidates)
    return next((item for item in tried if item.ships_as == variant), None)


def _file(description: Description, entry: FileEntry) -> Json:
    return {
        "type": "file",
        "bom-ref": f"{_variant_ref(description)}/{entry.path}",
        "name": entry.path,
        **_hashes(entry.digest),
        "properties": _properties({"size": str(entry.size)}),
    }


def _source(report: Report) -> Json:
    return {"bom-ref": _SOURCE, **_ancestor(report)}


def _ancestor(report: Report) -> Json:
    return {
        "type": "machine-learning-model",
        "name": f"{report.bundle.name} as it came",
        "description": report.source.framework,
        **_hashes(report.source.digest),
    }


def _data(report: Report) -> list[Json]:
    """A component for every file of rows; what is no digest says how rows were split."""
    digests = report.data.digests
    notes = "; ".join(f"{name}: {text}" for name, text in digests.items() if not _is_digest(text))
    return [
        {
            "type": "data",
            "bom-ref": f"data:{name}",
            "name": name,
            "data": [{"type": "dataset", "name": name, "description": notes or f"{name} rows"}],
            **_hashes(text),
        }
        for name, text in digests.items()
        if _is_digest(text)
    ]


def _runtime(descriptions: Sequence[Description]) -> Json:
    least = max((item.min_runtime for item in descriptions), key=_release)
    return {
        "type": "framework",
        "bom-ref": _RUNTIME,
        "name": "onnxruntime",
        "version": f">={least}",
        "scope": "required",
    }


def _tool(name: str, version: str) -> Json:
    return {"type": "library", "name": name, "version": version, "bom-ref": f"tool:{name}"}


def _dependencies(descriptions: Sequence[Description], data: Sequence[str]) -> list[Json]:
    refs = [_variant_ref(description) for description in descriptions]
    needs = sorted([_SOURCE, _RUNTIME, *data])
    return [
        {"ref": "bundle", "dependsOn": sorted(refs)},
        *({"ref": ref, "dependsOn": needs} for ref in refs),
    ]


def _variant_ref(description: Description) -> str:
    return f"variant:{description.variant}"


def _format(spec: TensorSpec) -> str:
    shape = ", ".join(str(size) for size in spec.shape)
    return f"{spec.name}: {spec.dtype}[{shape}]"


def _hashes(digest: str) -> Json:
    return {"hashes": [{"alg": "SHA-256", "content": hex_of(digest)}]} if digest else {}


def _is_digest(text: str) -> bool:
    return text.startswith("sha256:")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _properties(values: Mapping[str, str]) -> list[Json]:
    return [{"name": f"edgepack:{name}", "value": value} for name, value in sorted(values.items())]
