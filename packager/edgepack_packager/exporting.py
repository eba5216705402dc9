"""Take a model out of a bundle: as one plain ONNX file, or as onnxruntime's own model package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from edgepack_contract.atomic import replacing
from edgepack_contract.bundle import open_bundle, open_variant
from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH, Description
from edgepack_contract.hardware import Hardware
from edgepack_contract.trusted import TrustedBundle
from edgepack_contract.unpacked import LocalBundle, extract
from edgepack_contract.variants import Variant, select_variant
from edgepack_packager.errors import InputError, RecipeError
from edgepack_packager.graphs.clean import serialise

ONE_FILE_BYTES = 2**31 - 2**20
"""Protocol buffers end at 2 GiB; the graph around the weights is far smaller than the rest."""

PACKAGE_RUNTIME = "1.31"
"""The release whose C interface reads such a package; its Python package has no door to it yet."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, where, and from which variant."""

    path: Path
    variant: str
    digest: str


def export_onnx(
    source: LocalBundle, output: Path, *, variant: str | None, hardware: Hardware
) -> Exported:
    """Write one variant as one ONNX file, weights inside.

    Args:
        source: The bundle; no signature is checked.
        output: The file, or a folder in which ``NAME-VERSION-VARIANT.onnx`` is written.
        variant: Its name; None takes the best one for ``hardware``.
        hardware: The machine to choose for.

    Raises:
        RecipeError: There is no such variant, or the output is there already.
        InputError: The model is too large for one file.
        BundleError: The bundle is not intact, or no variant fits ``hardware``.
    """
    with _extracted(source, variant, hardware) as (bundle, description, folder):
        if output.is_dir():
            output = output / f"{bundle.name}-{bundle.version}-{description.variant}.onnx"
        _check_free(output)
        with replacing(output) as part:
            _write_one_file(folder, part)
        return Exported(output, description.variant, bundle.digest)


def export_ort_package(
    source: LocalBundle, output: Path, *, variant: str | None, hardware: Hardware
) -> Exported:
    """Write one variant as a model package of onnxruntime.

    A package holds several variants, but onnxruntime chooses among them by execution provider and
    not by what a processor can do, so that the first would always win: one goes in.

    Source: ``model_package/README.md`` and ``core/session/model_package/README.md`` of onnxruntime:
    ``manifest.json`` with ``schema_version``, ``components``; ``component.json`` with ``variants``.

    Args:
        source: The bundle; no signature is checked.
        output: The folder, which must not be there yet.
        variant: Its name; None takes the best one for ``hardware``.
        hardware: The machine to choose for.

    Raises:
        RecipeError: There is no such variant, or the output is there already.
        BundleError: The bundle is not intact, or no variant fits ``hardware``.
    """
    with _extracted(source, variant, hardware) as (bundle, description, folder):
        _check_free(output)
        with replacing(output) as part:
            component = part / "models" / bundle.name
            (component / description.variant).mkdir(parents=True)
            for name in (MODEL_PATH, MODEL_DATA_PATH):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, component / description.variant / name)
            _write_json(component / "component.json", _component(description))
            _write_json(part / "manifest.json", _manifest(bundle, description))
        return Exported(output, description.variant, bundle.digest)


@contextmanager
def _extracted(
    source: LocalBundle, name: str | None, hardware: Hardware
) -> Iterator[tuple[TrustedBundle, Description, Path]]:
    """The bundle, and one variant of it in a folder that lasts as long as the block."""
    bundle = open_bundle(source, source.digest, keyring=None)
    trusted = open_variant(bundle, source, _chosen(bundle, name, hardware))
    with TemporaryDirectory(prefix="edgepack-export-") as made:
        extract(trusted, source, Path(made))
        yield bundle, trusted.description, Path(made)


def _chosen(bundle: TrustedBundle, name: str | None, hardware: Hardware) -> Variant:
    if name is None:
        return select_variant(bundle.index, hardware)[0]
    found = next((item for item in bundle.variants if item.name == name), None)
    if found is None:
        raise RecipeError(
            f"the bundle has no variant {name!r}; it has "
            f"{', '.join(item.name for item in bundle.variants)}",
            code="no-variant",
        )
    return found


def _check_free(output: Path) -> None:
    if output.exists():
        raise RecipeError(f"{output} is there already; give another path", code="output-exists")
    if not output.parent.is_dir():
        raise RecipeError(f"there is no folder {output.parent} to write into", code="no-folder")


def _write_one_file(folder: Path, output: Path) -> None:
    parts = [folder / name for name in (MODEL_PATH, MODEL_DATA_PATH) if (folder / name).exists()]
    if len(parts) == 1:
        shutil.copyfile(parts[0], output)
        return
    size = sum(part.stat().st_size for part in parts)
    if size > ONE_FILE_BYTES:
        raise InputError(
            f"the model has {size} bytes, one ONNX file holds less than 2 GiB; unpack the bundle: "
            f"{MODEL_PATH} with {MODEL_DATA_PATH} beside it is plain ONNX too",
            code="too-large",
        )
    output.write_bytes(serialise(onnx.load(parts[0])))


def _manifest(bundle: TrustedBundle, description: Description) -> dict[str, object]:
    return {
        "schema_version": "1.0",
        "package_name": bundle.name,
        "package_version": bundle.version,
        "description": f"{description.task}, {description.precision}",
        "layout": "portable",
        "components": {bundle.name: f"models/{bundle.name}"},
        "additional_metadata": {
            "edgepack": {"digest": bundle.digest, "variant": description.variant}
        },
    }


def _component(description: Description) -> dict[str, object]:
    session = description.session
    options = {
        "session.intra_op.allow_spinning": str(int(session.spinning)),
        "session.inter_op.allow_spinning": str(int(session.spinning)),
        "session.disable_prepacking": str(int(not session.prepacking)),
    }
    # no "device": onnxruntime 1.31.1 then finds no processor that matches
    variant = {
        "variant_directory": description.variant,
        "ep": "CPUExecutionProvider",
        "executor_info": {"ort": {"model_file": MODEL_PATH, "session_options": options}},
    }
    return {"component_name": description.name, "variants": {description.variant: variant}}


def _write_json(path: Path, value: dict[str, object]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
