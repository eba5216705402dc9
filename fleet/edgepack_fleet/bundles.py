"""The bundle store: a folder of blobs by digest, and a row per bundle that makes it visible.

A pushed bundle is received into a temporary file, proven in full against the keyring, copied blob
by blob (each hashed again as its own copy is written), and only then named in the database. A crash
before the row leaves blobs that nothing names: harmless, and reused by the next push.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from edgepack_contract.bundle import BundleFile, open_variant, verify_bundle_file
from edgepack_contract.digest import CHUNK_BYTES, hex_of
from edgepack_contract.errors import MalformedBundleError, SourceError, UntrustedBundleError
from edgepack_contract.keyring import Keyring
from edgepack_contract.oci import INDEX_TYPE, Descriptor, ImageIndex, Manifest
from edgepack_contract.trusted import TrustedBundle
from edgepack_contract.variants import Variant
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import Bundle
from edgepack_fleet.errors import ConflictError, NotFoundError
from edgepack_fleet.packing import make_packed

logger = logging.getLogger(__name__)

OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob in the folder, and its compressed copy if it has one. ``size`` is in bytes."""

    digest: str
    size: int
    path: Path
    packed: Path | None = None


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """An index or a manifest with its media type."""

    blob: StoredBlob
    raw: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """A bundle that the store has now; ``created`` is False when it had it before."""

    name: str
    version: str
    digest: str
    created: bool


class _Typed(msgspec.Struct, frozen=True, rename="camel"):
    """The one field of a stored manifest that is needed to serve it."""

    media_type: str


@dataclass(frozen=True, slots=True)
class _References:
    """The digests that an index or a manifest refers to."""

    manifests: tuple[str, ...]
    blobs: tuple[str, ...]


class BundleStore:
    """Bundles of one fleet service.

    Args:
        folder: The service's data folder; ``blobs``, ``packed`` and ``incoming`` are made in it.
        database: Where the rows are.
        keyring: Gives the keyring that is in force, verified.
    """

    def __init__(self, folder: Path, database: Database, keyring: Callable[[], Keyring]) -> None:
        self._blobs = folder / "blobs" / "sha256"
        self._packed = folder / "packed"
        self._incoming = folder / "incoming"
        self._database = database
        self._keyring = keyring
        self._references: dict[str, _References] = {}

    def prepare(self) -> None:
        """Make the folders, and remove what a crash has left half received."""
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._packed.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._incoming.iterdir():
            leftover.unlink()

    def receive(self) -> Upload:
        """Begin to receive a bundle."""
        return Upload(self, self._incoming)

    def push(self, file: Path, *, now_ms: int, record: Callable[[Session, Pushed], None]) -> Pushed:
        """Prove a bundle file and make it visible.

        Args:
            file: The ``.edgepack`` file, which nobody else may be able to change.
            now_ms: The time, milliseconds since 1970 UTC.
            record: Called in the transaction that makes the bundle visible, for the audit log.

        Raises:
            MalformedBundleError: The bytes do not follow the format.
            UntrustedBundleError: It is unsigned, or no publisher of the keyring vouches for it.
            ConflictError: The store has another bundle of this name and version.
        """
        with BundleFile.open(file) as archive:
            bundle = _prove(archive, self._keyring())
            with self._database.read() as session:
                _refuse_other(session, bundle)
            for digest, size in archive.blobs().items():
                self._keep(archive, Descriptor(media_type=OCTETS, digest=digest, size=size))
                self._pack(digest)
            _sync_folder(self._blobs)
            row = _row(bundle, archive, now_ms)
        with self._database.write() as session:
            _refuse_other(session, bundle)
            created = _show(session, row)
            pushed = Pushed(row.name, row.version, row.digest, created)
            record(session, pushed)
        return pushed

    def tags(self, session: Session, name: str) -> dict[str, str]:
        """Every tag of a bundle name with its digest.

        Raises:
            NotFoundError: There is no bundle of this name.
        """
        rows = session.scalars(select(Bundle.tags).where(Bundle.name == name)).all()
        if not rows:
            raise NotFoundError(f"there is no bundle named {name[:80]!r}")
        return {tag: digest for tags in rows for tag, digest in tags.items()}

    def manifest(self, session: Session, name: str, reference: str) -> StoredManifest:
        """The index or manifest of a bundle name, by tag or digest.

        Raises:
            NotFoundError: There is none.
        """
        tags = self.tags(session, name)
        digest = tags.get(reference, reference)
        if digest not in self._reachable(set(tags.values())):
            raise NotFoundError(f"bundle {name!r} has no manifest {reference[:80]!r}")
        blob = self._stored(digest)
        raw = blob.path.read_bytes()
        return StoredManifest(blob, raw, msgspec.json.decode(raw, type=_Typed).media_type)

    def blob(self, session: Session, name: str, digest: str) -> StoredBlob:
        """A blob that belongs to a bundle name.

        Raises:
            NotFoundError: There is none.
        """
        manifests = self._reachable(set(self.tags(session, name).values()))
        if digest not in manifests and not any(digest in one.blobs for one in manifests.values()):
            raise NotFoundError(f"bundle {name!r} has no blob {digest[:80]!r}")
        return self._stored(digest)

    def _reachable(self, roots: set[str]) -> dict[str, _References]:
        """Every index and manifest that ``roots`` lead to."""
        found: dict[str, _References] = {}
        waiting = sorted(roots)
        while waiting:
            digest = waiting.pop()
            found[digest] = self._read_references(digest)
            waiting += [one for one in found[digest].manifests if one not in found]
        return found

    def _read_references(self, digest: str) -> _References:
        # what a digest names never changes, so it is read once
        known = self._references.get(digest)
        if known is None:
            known = _references(self._stored(digest).path.read_bytes())
            self._references[digest] = known
        return known

    def _stored(self, digest: str) -> StoredBlob:
        path, packed = self._blobs / hex_of(digest), self._packed / hex_of(digest)
        return StoredBlob(digest, path.stat().st_size, path, packed if packed.exists() else None)

    def _pack(self, digest: str) -> None:
        blob, target = self._blobs / hex_of(digest), self._packed / hex_of(digest)
        try:
            make_packed(blob, target, incoming=self._incoming)
        except OSError as error:
            # it saves devices time and is needed by nobody
            logger.warning("blob %s is served as it is: its copy failed: %s", digest, error)

    def _keep(self, archive: BundleFile, descriptor: Descriptor) -> None:
        target = self._blobs / hex_of(descriptor.digest)
        if target.exists():
            return
        handle, name = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(handle, "wb") as copy, archive.open_blob(descriptor) as stream:
                _copy_proven(stream, copy, descriptor)
            Path(name).rename(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class Upload:
    """A bundle being received. Use it as a context manager: what is not finished is removed."""

    def __init__(self, store: BundleStore, folder: Path) -> None:
        handle, name = tempfile.mkstemp(dir=folder)
        self._store = store
        self._path = Path(name)
        self._file = os.fdopen(handle, "wb")

    def write(self, chunk: bytes) -> None:
        """Add bytes to the end."""
        self._file.write(chunk)

    def finish(self, *, now_ms: int, record: Callable[[Session, Pushed], None]) -> Pushed:
        """Push what was received; see :meth:`BundleStore.push`."""
        self._file.flush()
        return self._store.push(self._path, now_ms=now_ms, record=record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def list_bundles(
    session: Session, *, name: str | None = None, after: tuple[str, str] = ("", ""), limit: int
) -> list[Bundle]:
    """Bundles by name and version, behind ``after``, at most ``limit``."""
    query = select(Bundle).where(tuple_(Bundle.name, Bundle.version) > after)
    if name is not None:
        query = query.where(Bundle.name == name)
    return list(session.scalars(query.order_by(Bundle.name, Bundle.version).limit(limit)))


def find_bundle(session: Session, name: str, version: str) -> Bundle:
    """One bundle.

    Raises:
        NotFoundError: There is none of this name and version.
    """
    row = session.get(Bundle, (name, version))
    if row is None:
        raise NotFoundError(
            f"there is no bundle {name[:80]}:{version[:80]}; push it with 'edgepack bundle push'"
        )
    return row


def _prove(archive: BundleFile, keyring: Keyring) -> TrustedBundle:
    try:
        return verify_bundle_file(archive, keyring=keyring)
    except SourceError as error:
        raise MalformedBundleError(
            f"the archive is incomplete: {error}", code="incomplete"
        ) from error
    except UntrustedBundleError as error:
        if error.code != "unsigned":
            raise
        raise UntrustedBundleError(
            f"bundle {archive.digest} is not signed, and a fleet takes signed bundles only: make a "
            "publisher key with 'edgepack keys init' if there is none, sign the bundle with "
            "'edgepack sign', and push it again",
            code="unsigned",
        ) from error


def _refuse_other(session: Session, bundle: TrustedBundle) -> None:
    known = session.get(Bundle, (bundle.name, bundle.version))
    if known is not None and known.digest != bundle.digest:
        raise ConflictError(
            f"{bundle.name} {bundle.version} exists with another content ({known.digest}); "
            "versions never change: build this one with a new version",
            code="other-digest",
        )


def _show(session: Session, row: Bundle) -> bool:
    known = session.get(Bundle, (row.name, row.version))
    if known is None:
        session.add(row)
        return True
    # the same identity, perhaps signed by another key or with other evidence
    known.tags, known.signed_by, known.size = row.tags, row.signed_by, row.size
    return False


def _row(bundle: TrustedBundle, archive: BundleFile, now_ms: int) -> Bundle:
    variants = bundle.variants
    first = open_variant(bundle, archive, variants[0])
    return Bundle(
        name=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        security_version=bundle.security_version,
        size=sum(archive.blobs().values()),
        signed_by=bundle.signed_by,
        oci_index=bundle.raw_index,
        tags={tag: entry.digest for tag, entry in archive.tags.items()},
        variants=[_variant(bundle, archive, variant) for variant in variants],
        description=msgspec.to_builtins(first.description),
        pushed_ms=now_ms,
    )


def _variant(bundle: TrustedBundle, archive: BundleFile, variant: Variant) -> dict[str, Any]:
    opened = open_variant(bundle, archive, variant)
    return {
        "name": variant.name,
        "platform": msgspec.to_builtins(variant.platform),
        "features": sorted(variant.features),
        "min_runtime": variant.min_runtime,
        "memory_bytes": variant.memory_bytes,
        "precision": opened.description.precision,
        "manifest": variant.manifest.digest,
        "size": sum(layer.size for layer in opened.layers.values()),
    }


def _references(raw: bytes) -> _References:
    if msgspec.json.decode(raw, type=_Typed).media_type == INDEX_TYPE:
        index = msgspec.json.decode(raw, type=ImageIndex)
        return _References(tuple(entry.digest for entry in index.manifests), ())
    manifest = msgspec.json.decode(raw, type=Manifest)
    return _References((), (manifest.config.digest, *(one.digest for one in manifest.layers)))


def _copy_proven(stream: BinaryIO, copy: BinaryIO, descriptor: Descriptor) -> None:
    hasher = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        hasher.update(chunk)
        copy.write(chunk)
    if f"sha256:{hasher.hexdigest()}" != descriptor.digest:
        raise MalformedBundleError(
            f"blob {descriptor.digest} has other bytes than its name says", code="wrong-digest"
        )
    copy.flush()
    os.fsync(copy.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
