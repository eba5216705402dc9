"""Read bundles where people have them: in a file, or in the folder that ``unpack`` wrote.

An unpacked folder has no manifests. They follow from the descriptions and are made again here, so
that every file is proven through the bundle index as it would be in the archive.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from edgepack_contract.bundle import BlobSource, BundleFile, copy_blob
from edgepack_contract.description import DESCRIPTION_PATH, FileEntry, parse_description
from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.limits import LIMITS
from edgepack_contract.oci import (
    MODEL_CONFIG_TYPE,
    SIGNATURE_TYPE,
    Descriptor,
    attached_manifest,
    describe,
    describe_bytes,
    layer_type,
    model_config,
    parse_index,
    signature_tag,
    variant_manifest,
)
from edgepack_contract.signing import SIGNATURE_FILE
from edgepack_contract.small_files import read_small
from edgepack_contract.trusted import INDEX_FILE, TrustedVariant
from edgepack_contract.variants import read_variants


class LocalBundle(BlobSource, Protocol):
    """A bundle on this machine."""

    @property
    def digest(self) -> str:
        """The digest that it claims for its bundle."""
        ...


class UnpackedFolder:
    """The tree that ``unpack`` wrote; a :class:`LocalBundle` without the evidence's files.

    Files are found by digest: what two variants share is read from one of their folders.

    Args:
        folder: The tree.

    Raises:
        MalformedBundleError: It is none, or a description in it is not one.
        OSError: A file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        raw_index = self._read(INDEX_FILE, LIMITS.oci_index_bytes)
        self.digest = sha256_digest(raw_index)
        self._documents = {self.digest: raw_index}
        self._bytes: dict[str, bytes] = {}
        self._files: dict[str, Path] = {}
        for variant in read_variants(parse_index(raw_index)):
            self._add_variant(variant.name)
        if (folder / SIGNATURE_FILE).is_file():
            self._add_signature(raw_index)

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        return self._documents.get(reference)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        if descriptor.digest in self._bytes:
            return io.BytesIO(self._bytes[descriptor.digest])
        path = self._files.get(descriptor.digest)
        if path is None or not path.is_file():
            raise MalformedBundleError(
                f"{self._folder} has no file with digest {descriptor.digest}", code="no-file"
            )
        return path.open("rb")

    def _add_variant(self, name: str) -> None:
        raw = self._read(f"{name}/{DESCRIPTION_PATH}", LIMITS.description_bytes)
        description = parse_description(raw)
        own = FileEntry(path=DESCRIPTION_PATH, size=len(raw), digest=sha256_digest(raw))
        layers = []
        for entry in sorted([*description.files, own], key=lambda entry: entry.path):
            layers.append(
                describe(layer_type(entry.path), entry.digest, entry.size, path=entry.path)
            )
            self._files[entry.digest] = self._folder / name / entry.path
        self._bytes[own.digest] = raw
        config = model_config(description, layers)
        self._bytes[sha256_digest(config)] = config
        manifest = variant_manifest(describe_bytes(MODEL_CONFIG_TYPE, config), layers)
        self._documents[sha256_digest(manifest)] = manifest

    def _add_signature(self, raw_index: bytes) -> None:
        raw = self._read(SIGNATURE_FILE, LIMITS.signature_bytes)
        layer = describe_bytes(SIGNATURE_TYPE, raw)
        self._bytes[layer.digest] = raw
        manifest = attached_manifest(raw_index, SIGNATURE_TYPE, [layer])
        self._documents[signature_tag(self.digest)] = manifest

    def _read(self, name: str, limit: int) -> bytes:
        path = self._folder / name
        try:
            raw = read_small(path, limit)
        except FileNotFoundError as error:
            raise MalformedBundleError(
                f"{self._folder} has no {name}; give a .edgepack file, or a folder that "
                "edgepack unpack wrote",
                code="no-bundle",
            ) from error
        if len(raw) > limit:
            raise MalformedBundleError(f"{path} has more than {limit} bytes", code="too-large")
        return raw


@contextmanager
def open_local(path: Path) -> Iterator[LocalBundle]:
    """Open a bundle file, or the folder that ``unpack`` made of one.

    Raises:
        MalformedBundleError: It is neither.
        OSError: It cannot be read.
    """
    if path.is_dir():
        yield UnpackedFolder(path)
        return
    with BundleFile.open(path) as file:
        yield file


def extract(variant: TrustedVariant, source: BlobSource, folder: Path) -> None:
    """Write the files of a variant into a folder, proving each while it is written.

    Raises:
        MalformedBundleError: A file has other bytes than the bundle names.
        OSError: A file cannot be written.
    """
    for name, layer in variant.layers.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            copy_blob(layer, source, target, what=f"{variant.variant.name}/{name}")
