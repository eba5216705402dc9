"""``edgepack inspect``: what is in a bundle?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from edgepack_cli.errors import CommandError
from edgepack_cli.output import bytes_text, emit_json, say, table
from edgepack_cli.trust import FILE
from edgepack_contract.atomic import replacing
from edgepack_contract.bundle import (
    BundleFile,
    copy_blob,
    open_bundle,
    open_evidence,
    open_variant,
)
from edgepack_contract.description import Description, Metric, TensorSpec
from edgepack_contract.oci import Descriptor, signature_tag
from edgepack_contract.trusted import TrustedBundle


@click.command()
@click.argument("file", type=FILE)
@click.option(
    "--evidence",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write its reports and bill of materials into a new folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, *, evidence: Path | None, as_json: bool) -> None:
    """Show the variants, inputs, outputs and metrics of a bundle; checks no signature.

    Example: edgepack inspect churn-1.4.0.edgepack --evidence churn-evidence
    """
    with BundleFile.open(file) as opened:
        bundle = open_bundle(opened, opened.digest, keyring=None)
        signed = opened.resolve(signature_tag(bundle.digest)) is not None
        variants = {
            one.name: open_variant(bundle, opened, one).description for one in bundle.variants
        }
        reports = open_evidence(bundle, opened)
        if evidence is not None:
            _write(reports, opened, evidence)
    if as_json:
        facts = {"digest": bundle.digest, "signed": signed, "evidence": sorted(reports)}
        emit_json(facts | {"variants": variants})
        return
    say(_head(bundle, signed=signed))
    for name, description in variants.items():
        say(_variant(name, description))
    if reports:
        where = f" in {evidence}" if evidence is not None else ""
        say(f"\nevidence{where}: {', '.join(sorted(reports))}")


def _write(reports: Mapping[str, Descriptor], source: BundleFile, folder: Path) -> None:
    if folder.exists():
        raise CommandError(f"{folder} exists; name a new folder for the evidence", code="exists")
    with replacing(folder) as part:
        part.mkdir()
        for name, layer in reports.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            with (part / name).open("xb") as target:
                copy_blob(layer, source, target, what=name)


def _head(bundle: TrustedBundle, *, signed: bool) -> str:
    words = "has a signature (edgepack verify checks it)" if signed else "is not signed"
    return (
        f"{bundle.name} {bundle.version}, security version {bundle.security_version}, {words}\n"
        f"{bundle.digest}"
    )


def _variant(name: str, description: Description) -> str:
    head = (
        f"\nvariant {name}: {description.precision} for {description.platform.architecture}, "
        f"onnxruntime {description.min_runtime} or newer"
    )
    lines = [
        head,
        f"  features  {', '.join(description.features) or 'any'}",
        *(f"  input     {_tensor(one)}" for one in description.inputs),
        *(f"  output    {_tensor(one)}" for one in description.outputs),
        *(
            f"  dimension {size} is {sizes.minimum} to {sizes.maximum}"
            for size, sizes in sorted(description.dimensions.items())
        ),
        *(f"  metric    {_metric(one)}" for one in description.metrics),
    ]
    files = [(f"  {one.path}", bytes_text(one.size), one.digest) for one in description.files]
    return "\n".join([*lines, table(("  FILE", "SIZE", "DIGEST"), files)])


def _tensor(spec: TensorSpec) -> str:
    shape = ", ".join(str(size) for size in spec.shape)
    state = f", carried from {spec.source}" if spec.role == "state" else ""
    return f"{spec.name} {spec.dtype}[{shape}]{state}"


def _metric(metric: Metric) -> str:
    interval = f"{metric.low:.4g} to {metric.high:.4g}"
    return f"{metric.name} {metric.value:.4g} ({interval}), n = {metric.n}, on {metric.dataset}"
