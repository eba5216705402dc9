"""The inside of a child: load one model, then answer rows. Its work never leaves it but as data."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from edgepack_packager.errors import ConversionError, DataError, InputError
from edgepack_packager.graphs.clean import serialise
from edgepack_packager.sources import wire
from edgepack_packager.sources.model import LoadContext, SourceModel

_WORDS = 2000


def serve_standard_streams() -> int:
    """Serve on standard input and output; what the model prints goes to standard error."""
    requests, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    with os.fdopen(requests, "rb") as incoming, os.fdopen(replies, "wb") as outgoing:
        Servant().serve(incoming, outgoing)
    sys.stderr.flush()
    # without destructors: frameworks that fail in their shutdown have answered already
    os._exit(0)


class Servant:
    """Keeps the model that the first request loads."""

    def __init__(self) -> None:
        self._source: SourceModel | None = None
        self._what = "the model"

    def serve(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        """Answer requests until there are no more."""
        while len(head := incoming.read(wire.LENGTH_BYTES)) == wire.LENGTH_BYTES:
            frame = incoming.read(struct.unpack(">Q", head)[0])
            reply = msgspec.msgpack.encode(self._answer(frame))
            outgoing.write(struct.pack(">Q", len(reply)) + reply)
            outgoing.flush()

    def _answer(self, frame: bytes) -> wire.Reply:
        try:
            request = msgspec.msgpack.decode(frame, type=wire.Request)
            if isinstance(request, wire.Load):
                return self._load(request)
            if isinstance(request, wire.Ask):
                return self._ask(request)
            return self._widen()
        except InputError as error:
            return wire.Failed(blame=_blame(error), code=error.code, words=str(error)[:_WORDS])
        except MemoryError:
            return wire.Failed(
                blame="source",
                code="source-memory",
                words=f"{self._what} needs more memory than its process may have",
            )
        except Exception as error:  # noqa: BLE001 - an outer boundary: this process ends here
            words = f"{type(error).__name__}: {error}"[:_WORDS]
            if self._source is None:
                words = f"{self._what} cannot be loaded: {words}"
                return wire.Failed(blame="source", code="load-failed", words=words)
            return wire.Failed(blame="value", code="source-failed", words=words)

    def _load(self, request: wire.Load) -> wire.Loaded:
        self._what = Path(request.path).name
        context = LoadContext(
            folder=Path(os.environ["TMPDIR"]),
            columns=wire.from_tensors(request.columns),
            seed=request.seed,
        )
        source = _load(request, context)
        self._source = source
        return wire.Loaded(
            graph=serialise(source.graph),
            framework=source.framework,
            task=source.task,
            features=source.features,
            classes=source.classes,
            tools=source.tools,
            passes=source.passes,
            sample=None if source.sample is None else wire.to_tensors(source.sample),
            warnings=source.warnings,
            answers=source.answer is not None,
            widens=source.wider is not None,
        )

    def _ask(self, request: wire.Ask) -> wire.Answered:
        if self._source is None or self._source.answer is None:
            raise ValueError("nothing is loaded that answers")
        outputs = self._source.answer(wire.from_tensors(request.feeds))
        return wire.Answered(outputs=wire.to_tensors(outputs))

    def _widen(self) -> wire.Widened:
        if self._source is None or self._source.wider is None:
            raise ValueError("nothing is loaded that has a wider form")
        return wire.Widened(graph=serialise(self._source.wider()))


def _load(request: wire.Load, context: LoadContext) -> SourceModel:
    # each imports its framework, and a child needs only one
    path, sample = Path(request.path), wire.from_tensors(request.sample) or None
    if request.kind == "pickle":
        from edgepack_packager.sources.pickled import load_pickle  # noqa: PLC0415

        return load_pickle(path, context, digest=request.digest, sample=sample)
    if request.kind == "exported":
        from edgepack_packager.sources.exported import load_exported  # noqa: PLC0415

        return load_exported(path, digest=request.digest)
    from edgepack_packager.sources import from_tensorflow  # noqa: PLC0415

    loaders = {
        "keras": from_tensorflow.load_keras,
        "savedmodel": from_tensorflow.load_saved_model,
        "tflite": from_tensorflow.load_tflite,
    }
    return loaders[request.kind](path, digest=request.digest)


def _blame(error: InputError) -> Literal["source", "conversion", "data"]:
    if isinstance(error, ConversionError):
        return "conversion"
    return "data" if isinstance(error, DataError) else "source"
