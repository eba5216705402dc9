"""A model in a program of one's own: checks, errors and statistics of the daemon, without HTTP."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import msgspec
import numpy as np

from edgepack_contract.description import DESCRIPTION_PATH, Description
from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import ConfigError, SourceError
from edgepack_contract.keyring import Keyring, open_keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.message_types import prepare_types
from edgepack_contract.small_files import read_configured, read_small
from edgepack_contract.window import WindowBody
from edgepack_runtime.inference.coerce import check_feeds, tensor_from_values
from edgepack_runtime.inference.errors import BadRequestError, InputError, ModelRunError, ShapeError
from edgepack_runtime.inference.prescan import prescan
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.inference.variant import read_description
from edgepack_runtime.loading import load_bundle
from edgepack_runtime.serving.errors import NonfiniteOutputError
from edgepack_runtime.serving.instances import feeds_of_rows, predictions
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.telemetry.aggregate import SlotAggregator

# the threads are the caller's
prepare_types()

Inputs = Mapping[str, Any] | Sequence[Any] | Tensor


class Model:
    """A model that is loaded, checked against its golden rows, and counts what it answers.

    Several threads may use it at once. It is a context manager; :meth:`close` lets go of it.

    Args:
        path: A bundle file, or the folder of one variant that ``edgepack unpack`` wrote.
        keyring: The keyring that says who may sign; ``owner`` then pins its owner keys.
        owner: Fingerprint of the owner keys, 64 hex digits.
        unsigned: Take a file that nobody is asked to vouch for. A folder has no signature, and
            needs this too.
        threads: Threads of a run, where the bundle leaves them open.
        now_ms: Wall clock, milliseconds since 1970 UTC.

    Raises:
        ConfigError: Neither a keyring nor ``unsigned`` was given (code ``unsigned``), or both.
        SourceError: A file cannot be read.
        DocumentError: The keyring is not genuine.
        BundleError: The bundle is not whole, not vouched for, or not for this machine.
        ModelError: It does not load, or answers its golden rows otherwise here.

    Attributes:
        description: What the bundle says of inputs, outputs and budgets.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        keyring: str | Path | None = None,
        owner: str | None = None,
        unsigned: bool = False,
        threads: int = 1,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        trusted = _trusted(keyring, owner, unsigned=unsigned)
        self._model = _load(Path(path), trusted, threads)
        self.description: Description = self._model.description
        self._only = self.description.inputs[0] if len(self.description.inputs) == 1 else None
        self._usual = self._model.float_rows
        self._refuses = self.description.on_nonfinite == "refuse"
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._counts = SlotAggregator(
            self.name, self.digest, self.description, self._model.reference, now_ms()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.description.name

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.description.version

    @property
    def digest(self) -> str:
        """The digest of the bundle; of a folder that of its description."""
        return self._model.digest

    def predict(self, inputs: Inputs) -> dict[str, Tensor]:
        """Answer one request.

        Args:
            inputs: Arrays by input name; or for a model of one input its array; or rows, each a
                list of values in the order of the features or a dict by feature name.

        Returns:
            An array for each output, by name.

        Raises:
            InputError: The inputs do not fit the model.
            ModelRunError: The model failed, or was closed.
            NonfiniteOutputError: It answered NaN or an infinity, which its bundle refuses.
        """
        return self._answer(inputs)[1]

    def predict_rows(self, inputs: Inputs) -> list[Any]:
        """Answer like :meth:`predict`, as one prediction for each row.

        Returns:
            As ``/v1/models/M:predict``: of a classifier dicts of ``label`` and ``probabilities``
            (or ``scores``), of another model the row of its output.

        Raises:
            BadRequestError: An output has not one row for each input row.
        """
        feeds, outputs = self._answer(inputs)
        first = next(iter(feeds.values()))
        return predictions(self._model, first.shape[0] if first.ndim else 1, outputs)

    def window(self) -> WindowBody:
        """What was counted since the last call, or since the model was loaded.

        Windows add up with :func:`edgepack_contract.window.merge_bodies`.
        """
        with self._lock:
            return self._counts.roll(self._now_ms())

    def close(self) -> None:
        """Let go of the model; a later prediction is a :class:`ModelRunError`. Idempotent."""
        self._model.release()

    def _answer(self, inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        begun = perf_counter()
        try:
            usual = self._usual
            if usual is not None and type(inputs) is np.ndarray and usual.fits(inputs):
                feeds = {usual.name: inputs}
            else:
                feeds = self._feeds(inputs)
            outputs = self._model.run(feeds)
            if self._refuses and not self._model.is_finite(outputs):
                raise NonfiniteOutputError(
                    f"model {self.name!r} {self.version} answered NaN or an infinity, which its "
                    "bundle refuses"
                )
        except (InputError, ModelRunError, NonfiniteOutputError) as error:
            with self._lock:
                self._counts.record_error(_kind(error))
            raise
        seconds = perf_counter() - begun
        with self._lock:
            self._counts.record(feeds, outputs, seconds)
        return feeds, outputs

    def _feeds(self, inputs: Inputs) -> dict[str, Tensor]:
        if isinstance(inputs, list | tuple):
            feeds = _from_rows(self.description, inputs)
        elif isinstance(inputs, dict) or not hasattr(inputs, "shape"):
            feeds = self._named(inputs)
        elif self._only is not None:
            feeds = {self._only.name: tensor_from_values(self._only, inputs)}
        else:
            names = ", ".join(spec.name for spec in self.description.inputs)
            raise BadRequestError(f"this model has several inputs; give a dict of {names}")
        check_feeds(self.description, feeds)
        return feeds

    def _named(self, inputs: object) -> dict[str, Tensor]:
        if not isinstance(inputs, Mapping):
            raise BadRequestError(
                f"expected an array, rows or arrays by input name, given {type(inputs).__name__}"
            )
        specs = {spec.name: spec for spec in self.description.inputs}
        unknown = [str(name)[:80] for name in inputs if name not in specs]
        if unknown:
            raise BadRequestError(
                f"input {unknown[0]!r} is not one of the model's: {', '.join(specs)}; a row by "
                "feature name goes into a list"
            )
        return {name: tensor_from_values(specs[name], value) for name, value in inputs.items()}


def _from_rows(description: Description, rows: Sequence[Any]) -> dict[str, Tensor]:
    if not rows:
        raise ShapeError("there are no rows")
    try:
        return feeds_of_rows(description, rows)
    except msgspec.ValidationError as error:
        raise BadRequestError(f"expected rows, all lists or all dicts: {error}") from error


def _kind(error: InputError | ModelRunError | NonfiniteOutputError) -> Any:
    match error:
        case InputError():
            return error.kind
        case NonfiniteOutputError():
            return "nonfinite_output"
        case _:
            return "backend"


def _trusted(keyring: str | Path | None, owner: str | None, *, unsigned: bool) -> Keyring | None:
    if unsigned == (keyring is not None) or (keyring is None) != (owner is None):
        raise ConfigError(
            "say who may sign with keyring= and owner=, or unsigned=True to take what nobody "
            "vouches for",
            code="unsigned",
        )
    if keyring is None or owner is None:
        return None
    raw = read_configured(Path(keyring), LIMITS.keyring_bytes, code="no-keyring")
    return open_keyring(raw, owner_fingerprint=owner)


def _load(path: Path, keyring: Keyring | None, threads: int) -> ServingModel:
    if not path.is_dir():
        with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
            return load_bundle(path, Path(folder), keyring, threads=threads)[1]
    if keyring is not None:
        raise ConfigError(
            f"{path} is a folder, which nobody has signed; give the bundle file, or unsigned=True",
            code="unsigned",
        )
    try:
        prescan(path, read_description(path))
        digest = sha256_digest(read_small(path / DESCRIPTION_PATH, LIMITS.description_bytes))
        return ServingModel.load(path, digest, default_threads=threads)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error}", code="no-file") from error
