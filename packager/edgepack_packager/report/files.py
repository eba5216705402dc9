"""The files that travel with a bundle as its evidence."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack_contract.description import Description
from edgepack_packager.report.page import to_html
from edgepack_packager.report.schema import Report, to_json
from edgepack_packager.sbom import SBOM_PATH, sbom_of

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def evidence_files(report: Report, descriptions: Sequence[Description]) -> dict[str, bytes]:
    """Report and bill of materials by path.

    Args:
        report: The evidence; it names the bundle's digest.
        descriptions: Of every variant, with its files.
    """
    return {
        REPORT_JSON: to_json(report),
        REPORT_HTML: to_html(report),
        SBOM_PATH: sbom_of(report, descriptions),
    }
