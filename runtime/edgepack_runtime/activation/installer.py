"""Bring bundles from an untrusted place into the store, and prove what the store holds.

The signature is checked before anything large is fetched, and only the variant for this machine is.
Bytes are hashed as they are written; :meth:`Installer.verify` reads them back from the disk.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgepack_contract.bundle import open_bundle, open_variant, read_blob, verify_layers
from edgepack_contract.description import Description
from edgepack_contract.errors import (
    BundleError,
    ConfigError,
    EdgepackError,
    MalformedBundleError,
    SourceError,
    UntrustedBundleError,
)
from edgepack_contract.hardware import Hardware
from edgepack_contract.keyring import Keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Ref
from edgepack_contract.oci import Descriptor
from edgepack_contract.trusted import TrustedBundle, TrustedVariant
from edgepack_contract.variants import Variant, alternatives
from edgepack_runtime.activation.figures import carry_tried
from edgepack_runtime.activation.layers import LayerFetch, file_size
from edgepack_runtime.activation.state import REVOKED, Installed
from edgepack_runtime.errors import TransientSourceError
from edgepack_runtime.sources.archive import ArchiveSource
from edgepack_runtime.sources.source import Source
from edgepack_runtime.storage.store import Store, StoredSource, proof_name

MAX_ALTERNATIVES = 8
"""More variants of one bundle are not tried, however many it ranks."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A bundle in the store, and the place of its variant among those that fit this machine."""

    bundle: Installed
    variant: str
    alternative: int = 0
    alternatives: int = 1


class Installer:
    """Downloads and proofs for one slot.

    Args:
        store: Where bundles go.
        open_source: Makes a source out of an address.
        keyring: The keyring as it is now; None when unsigned bundles are accepted.
        hardware: What this machine is.
    """

    def __init__(
        self,
        store: Store,
        *,
        open_source: Callable[[str], Source],
        keyring: Callable[[], Keyring | None],
        hardware: Hardware,
    ) -> None:
        self._store = store
        self._open_source = open_source
        self._keyring = keyring
        self._hardware = hardware

    def fetch(
        self,
        ref: Ref,
        *,
        alternative: int | None = 0,
        interrupted: Callable[[], bool],
        progress: Callable[[float], None],
    ) -> Fetched:
        """Make sure that a variant of a bundle is in the store, asking its sources in turn.

        What an earlier attempt wrote is used again.

        Args:
            ref: The bundle.
            alternative: The place of the variant among those that fit this machine, best first.
                None takes whichever is in the store, else the best.
            interrupted: Asked between blocks; whether to stop.
            progress: Told the share of the bytes that are there.

        Raises:
            InterruptedInstallError: It was asked to stop.
            BundleError: What the sources have is not to be installed.
            TransientSourceError: No source has it, but one may later.
            SourceError: No source has it.
            DiskFullError: No room.
            StorageFaultError: The disk failed.
        """
        known = self._known(ref, alternative)
        if known:
            return known
        errors: list[EdgepackError] = []
        for address in ref.sources:
            try:
                with closing(self._open_source(address)) as source:
                    return self._fetch_from(source, ref, alternative or 0, interrupted, progress)
            except (BundleError, SourceError, ConfigError) as error:
                errors.append(error)
        raise _worst(ref, errors)

    def verify(self, ref: Ref) -> None:
        """Prove a bundle of the store anew: signature, name, and every byte, from the disk.

        Raises:
            BundleError: It is not what it was, or the keyring does not vouch for it any more.
        """
        self._prove(ref.digest, keyring=self._keyring(), name=ref.name)

    def check_bytes(self, digest: str) -> None:
        """Prove that a bundle of the store still has the bytes it was installed with.

        The signature was checked then; who may sign may have changed since, which is no reason to
        stop serving.

        Raises:
            BundleError: It has other bytes.
        """
        self._prove(digest, keyring=None, name=None)

    def refuse_revoked(self, digest: str) -> None:
        """Check that the owner has not revoked a bundle.

        Raises:
            UntrustedBundleError: It is revoked.
        """
        words = self.revoked(digest)
        if words:
            raise UntrustedBundleError(words, code=REVOKED)

    def revoked(self, digest: str) -> str | None:
        """By which keyring the owner has revoked a bundle, in words; None when that is not so."""
        keyring = self._keyring()
        if keyring is None or digest not in keyring.revoked_digests:
            return None
        return f"bundle {digest} is revoked by keyring version {keyring.version}"

    def describe(self, digest: str) -> Description:
        """The description of the variant that the store has of a bundle.

        Raises:
            BundleError: It is damaged.
            SourceError: It is not in the store.
        """
        source = StoredSource(self._store.fs, self._store.entry(digest))
        bundle = open_bundle(source, digest, keyring=None)
        return _stored_variant(bundle, source).description

    def identify(self, path: Path) -> Installed:
        """Prove the index and the signature of a bundle file.

        Raises:
            BundleError: It is malformed, or the keyring does not vouch for it.
            SourceError: It cannot be read.
        """
        with closing(ArchiveSource.open(path)) as source:
            return _installed(open_bundle(source, source.digest, keyring=self._keyring()))

    def _known(self, ref: Ref, alternative: int | None) -> Fetched | None:
        if not self._store.has(ref.digest):
            return None
        source = StoredSource(self._store.fs, self._store.entry(ref.digest))
        try:
            bundle = open_bundle(source, ref.digest, keyring=None, name=ref.name)
            stored = _stored_variant(bundle, source).variant
            if alternative is None:
                return Fetched(_installed(bundle), stored.name)
            fitting = self._alternatives(bundle)
            if fitting[alternative : alternative + 1] != [stored]:
                return None
            return Fetched(_installed(bundle), stored.name, alternative, len(fitting))
        except (BundleError, SourceError):
            # it will be fetched again; the bytes that are there help nobody
            self._store.remove(ref.digest)
            return None

    def _prove(self, digest: str, *, keyring: Keyring | None, name: str | None) -> None:
        source = StoredSource(self._store.fs, self._store.entry(digest))
        bundle = open_bundle(source, digest, keyring=keyring, name=name)
        variant = _stored_variant(bundle, source)
        verify_layers(variant, source)
        extra = source.files() - set(variant.layers)
        if extra:
            raise MalformedBundleError(
                f"the store has files that are not of the bundle: {', '.join(sorted(extra))[:200]}",
                code="damaged-store",
            )

    def _fetch_from(
        self,
        source: Source,
        ref: Ref,
        alternative: int,
        interrupted: Callable[[], bool],
        progress: Callable[[float], None],
    ) -> Fetched:
        seen = _Remembering(source)
        bundle = open_bundle(seen, ref.digest, keyring=self._keyring(), name=ref.name)
        fitting = self._alternatives(bundle)
        place = min(alternative, len(fitting) - 1)
        variant = open_variant(bundle, seen, fitting[place])
        read_blob(seen, variant.manifest.config, what="config", max_bytes=LIMITS.manifest_bytes)
        folder = self._stage(ref.digest, variant)
        self._write_proof(folder, seen.proof(without=variant.layers))
        LayerFetch(self._store, source, folder, interrupted, progress).run(variant.layers)
        self._replace(ref.digest, folder)
        return Fetched(_installed(bundle), fitting[place].name, place, len(fitting))

    def _alternatives(self, bundle: TrustedBundle) -> list[Variant]:
        return alternatives(bundle.index, self._hardware)[:MAX_ALTERNATIVES]

    def _replace(self, digest: str, folder: Path) -> None:
        """Move what is staged into the store; the alternative that was tried before goes."""
        if self._store.has(digest):
            carry_tried(self._store.fs, self._store.entry(digest), folder)
            self._store.remove(digest)
        self._store.publish(digest)

    def _stage(self, digest: str, variant: TrustedVariant) -> Path:
        staging, layers = self._store.staging(digest), variant.layers
        if not (staging / "proof" / proof_name(variant.variant.manifest.digest)).exists():
            # left by an attempt that chose another variant, before an update of this machine
            self._store.fs.remove_tree(staging)
        model = staging / "model"
        there = sum(file_size(model / path) for path in layers)
        total = sum(layer.size for layer in layers.values())
        return self._store.stage(digest, needed_bytes=max(0, total - there))

    def _write_proof(self, folder: Path, proof: Mapping[str, bytes]) -> None:
        for name, raw in proof.items():
            with self._store.fs.appending(folder / "proof" / name) as file:
                file.restart()
                file.write(raw)
                file.finish()


class _Remembering:
    """A source that keeps the small documents it was asked for, which are then the proof."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kept: dict[str, bytes] = {}

    def resolve(self, reference: str) -> bytes | None:
        """See :class:`~edgepack_contract.bundle.BlobSource`."""
        raw = self._source.resolve(reference)
        if raw is not None:
            self._kept[reference] = raw
        return raw

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """See :class:`~edgepack_contract.bundle.BlobSource`; small blobs only."""
        with self._source.open_blob(descriptor) as stream:
            raw = stream.read(min(descriptor.size, LIMITS.signature_bytes) + 1)
        self._kept[descriptor.digest] = raw
        return io.BytesIO(raw)

    def proof(self, *, without: Mapping[str, Descriptor]) -> dict[str, bytes]:
        """What was read, by file name, but for the files of the variant itself."""
        layers = {layer.digest for layer in without.values()}
        return {
            proof_name(reference): raw
            for reference, raw in self._kept.items()
            if reference not in layers
        }


def _installed(bundle: TrustedBundle) -> Installed:
    return Installed(
        digest=bundle.digest,
        name=bundle.name,
        version=bundle.version,
        security_version=bundle.security_version,
    )


def _stored_variant(bundle: TrustedBundle, source: StoredSource) -> TrustedVariant:
    for variant in bundle.variants:
        if source.resolve(variant.manifest.digest) is not None:
            return open_variant(bundle, source, variant)
    raise MalformedBundleError("the store has no variant of the bundle", code="damaged-store")


def _worst(ref: Ref, errors: list[EdgepackError]) -> EdgepackError:
    """Of what the sources said, the error to go by: one that may pass is worth another try."""
    for error in errors:
        if isinstance(error, TransientSourceError):
            return error
    if errors:
        return errors[-1]
    return SourceError(
        f"bundle {ref.digest} is not in the store and the wish names no usable source",
        code="no-source",
    )
