"""Bundles as a forger would have them: opened, altered, and written with digests that fit again."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bundle_samples import PUBLISHER

from edgepack_contract.canonical import canonical_json
from edgepack_contract.digest import sha256_digest
from edgepack_contract.keys import PrivateKey
from edgepack_contract.oci_layout import BLOB_FOLDER, INDEX_ENTRY
from edgepack_contract.signing import sign_tree
from edgepack_contract.ustar import NewEntry, UstarReader, write_ustar


def entries_of(path: Path) -> dict[str, bytes]:
    """Every entry of a bundle file."""
    with UstarReader.open(path) as reader:
        return {name: reader.read(name, max_bytes=2**26) for name in reader.entries}


def rewritten(path: Path, files: dict[str, bytes]) -> Path:
    """Write a bundle file of these entries."""
    stream = io.BytesIO()
    new = [NewEntry(name=n, size=len(d), open=partial(io.BytesIO, d)) for n, d in files.items()]
    write_ustar(stream, new, mtime=0)
    path.write_bytes(stream.getvalue())
    return path


def resigned(path: Path, files: dict[str, bytes], change: Callable[[bytes], bytes]) -> None:
    """Write the bundle with another signature file, with every digest around it made to fit."""
    layout = json.loads(files[INDEX_ENTRY])
    entry = next(
        one
        for one in layout["manifests"]
        if one["annotations"]["org.opencontainers.image.ref.name"].endswith(".sig")
    )
    manifest = json.loads(files.pop(blob(entry["digest"])))
    signature = change(files.pop(blob(manifest["layers"][0]["digest"])))
    put(files, manifest["layers"][0], signature)
    put(files, entry, canonical_json(manifest))
    files[INDEX_ENTRY] = canonical_json(layout)
    rewritten(path, files)


def blob(digest: str) -> str:
    """The entry that has a blob."""
    return BLOB_FOLDER + digest.removeprefix("sha256:")


def put(files: dict[str, bytes], descriptor: dict[str, Any], data: bytes) -> None:
    """Add a blob and make its descriptor fit."""
    descriptor |= {"digest": sha256_digest(data), "size": len(data)}
    files[blob(descriptor["digest"])] = data


def resigned_tree(
    path: Path, change: Callable[[dict[str, str]], dict[str, str]], key: PrivateKey = PUBLISHER
) -> None:
    """Write the bundle with a genuine signature over a changed tree."""

    def sign(raw: bytes) -> bytes:
        payload = json.loads(base64.b64decode(json.loads(raw)["dsseEnvelope"]["payload"]))
        listed = payload["predicate"]["resources"]
        tree = {one["name"]: f"sha256:{one['digest']}" for one in listed}
        return sign_tree(change(tree), key, name="x")

    resigned(path, entries_of(path), sign)
