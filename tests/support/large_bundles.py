"""A small model in a large file, so that there is time to end a device while it downloads it."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
from bundle_samples import PUBLISHER
from world_bundles import model_files, tiny_description

from edgepack_contract.keys import PrivateKey
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle


def large_bundle(path: Path, version: str, *, size: int, signer: PrivateKey = PUBLISHER) -> str:
    """Write a signed bundle whose graph has ``size`` bytes more, which pack to half; its digest."""
    files = model_files(version)
    model = onnx.load_from_string(files["model.onnx"])
    model.doc_string = random.Random(version).randbytes(size // 2).hex()
    large = files | {"model.onnx": model.SerializeToString(deterministic=True)}
    content = BundleContent([VariantContent(tiny_description(version), large)])
    return write_bundle(path, content, signer=signer)
