"""A variant that answers many rows at once, as the device answers them one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from edgepack_contract.bundle import open_bundle
from edgepack_contract.bundle import open_variant as prove_variant
from edgepack_contract.description import GOLDEN_PATH, Description
from edgepack_contract.errors import BundleError
from edgepack_contract.keyring import Keyring
from edgepack_contract.trusted import TrustedBundle
from edgepack_contract.unpacked import extract, open_local
from edgepack_contract.variants import select_variant
from edgepack_packager.errors import DataError
from edgepack_packager.targets import this_hardware
from edgepack_runtime.inference.benchmark import named_variant
from edgepack_runtime.inference.coerce import check_feeds, check_shape
from edgepack_runtime.inference.errors import ModelRunError
from edgepack_runtime.inference.golden import GoldenRows, check_golden, load_golden
from edgepack_runtime.inference.session import Session, Tensor
from edgepack_runtime.inference.variant import open_variant

CHUNK_ROWS = 65_536
CHUNK_BYTES = 32 * 1024 * 1024
_TEXT_BYTES = 64


@dataclass(frozen=True, slots=True)
class BatchModel:
    """A proven variant, loaded.

    ``golden`` are its golden rows, which show what inputs and outputs look like.
    """

    bundle: TrustedBundle
    description: Description
    session: Session
    golden: GoldenRows

    @property
    def row_by_row(self) -> bool:
        """Whether a row's answer would depend on its neighbours, or the graph takes but one."""
        one = any(spec.shape and spec.shape[0] == 1 for spec in self.description.inputs)
        # dynamic scales are those of all that is computed together
        return one or self.description.precision == "int8-dynamic"

    @property
    def chunk_rows(self) -> int:
        """How many rows to take at a time, so that inputs and outputs are a few tens of MB."""
        tensors = [*self.golden.inputs.values(), *self.golden.outputs.values()]
        width = sum(_row_bytes(tensor) for tensor in tensors)
        most = [
            self.description.dimensions[spec.shape[0]].maximum
            for spec in self.description.inputs
            if spec.shape and spec.shape[0] in self.description.dimensions
        ]
        return max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(width, 1), *most))

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of some rows.

        Raises:
            InputError: The rows are not what the device would take.
            ModelRunError: The model fails on them.
        """
        rows = len(next(iter(feeds.values())))
        if not self.row_by_row:
            return self._run(feeds)
        parts = [
            self._run({name: values[row : row + 1] for name, values in feeds.items()})
            for row in range(rows)
        ]
        return join(parts)

    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for spec in self.description.inputs:
            check_shape(spec, feeds[spec.name].shape)
        check_feeds(self.description, feeds)
        return self.session.run(feeds)


@contextmanager
def open_model(
    path: Path, *, keyring: Keyring | None, variant: str | None, threads: int
) -> Iterator[BatchModel]:
    """Prove a bundle, choose its variant for this machine, load it and check its golden rows.

    Args:
        path: A bundle file, or the folder that ``unpack`` wrote.
        keyring: Who may sign; None checks no signature.
        variant: Its name; None for the best.
        threads: Threads of the session; the bundle's own number is meant for the device.

    Raises:
        BundleError: Not intact, not vouched for, or not for this machine.
        ModelError: It does not load, or its golden rows are not what they must be.
        DataError: The graph takes a fixed number of rows at a time.
    """
    with TemporaryDirectory(prefix="edgepack-predict-") as name:
        folder = Path(name)
        with open_local(path) as source:
            bundle = open_bundle(source, source.digest, keyring=keyring)
            host = this_hardware()
            if variant is None:
                chosen = select_variant(bundle.index, host)[0]
            else:
                chosen = named_variant(bundle.index, host, variant)
            proven = prove_variant(bundle, source, chosen)
            extract(proven, source, folder)
        _check_batch(proven.description)
        options = msgspec.structs.replace(proven.description.session, intra_op_threads=threads)
        description = msgspec.structs.replace(proven.description, session=options)
        session = open_variant(folder, description)
        _check_golden(session, folder, description)
        yield BatchModel(bundle, description, session, load_golden(folder / GOLDEN_PATH))


def run_apart(
    model: BatchModel, feeds: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor] | None, dict[int, str]]:
    """The outputs of the rows that the model can answer, and why not for each other row.

    Rows are halved until those that fail are alone.

    Raises:
        InputError: The rows are not what the device would take.
        ModelRunError: It fails for another reason than the rows, such as memory.
    """
    rows = len(next(iter(feeds.values())))
    try:
        return model.run(feeds), {}
    except ModelRunError as error:
        if error.code != ModelRunError.default_code:
            raise
        if rows == 1:
            return None, {0: str(error)}
    middle = rows // 2
    first, failed = run_apart(model, {name: values[:middle] for name, values in feeds.items()})
    second, late = run_apart(model, {name: values[middle:] for name, values in feeds.items()})
    failed |= {middle + row: words for row, words in late.items()}
    parts = [part for part in (first, second) if part is not None]
    return (join(parts) if parts else None), failed


def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Outputs of several runs, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check_batch(description: Description) -> None:
    for spec in description.inputs:
        first = spec.shape[0] if spec.shape else None
        if first is None or (isinstance(first, int) and first != 1):
            raise DataError(
                f"the input {spec.name!r} takes {first or 'no'} rows at a time; a table is scored "
                "row by row or in chunks of any size",
                code="fixed-batch",
            )


def _check_golden(session: Session, folder: Path, description: Description) -> None:
    result = check_golden(session, folder / GOLDEN_PATH, description.golden)
    if not result.ok:
        raise BundleError(
            f"the golden rows are wrong on this machine: {result.words}", code="golden-mismatch"
        )


def _row_bytes(tensor: Tensor) -> int:
    each = _TEXT_BYTES if tensor.dtype.kind in "OU" else tensor.dtype.itemsize
    return each * int(np.prod(tensor.shape[1:]))
