"""Models that a child process loads: the build gets their graph and their answers to rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import onnx

from edgepack_packager.data.rows import Feeds
from edgepack_packager.errors import ConversionError, DataError, InputError, ModelSourceError
from edgepack_packager.graphs.running import chunks
from edgepack_packager.sources import wire
from edgepack_packager.sources.digests import path_digest
from edgepack_packager.sources.given import join_rows, read_graph
from edgepack_packager.sources.model import Answer, LoadContext, SourceModel
from edgepack_packager.sources.sandbox import Child, ChildLimits

ASKED_ROWS = 256

_Wanted = TypeVar("_Wanted", wire.Loaded, wire.Answered, wire.Widened)

_BLAMES: dict[str, type[InputError]] = {
    "source": ModelSourceError, "conversion": ConversionError, "data": DataError,
}  # fmt: skip


def load_in_child(
    kind: wire.Kind,
    path: Path,
    context: LoadContext,
    *,
    enclosed: bool,
    sample: Feeds | None = None,
    limits: ChildLimits | None = None,
) -> SourceModel:
    """Load and convert ``path`` in a child process, which then answers for the model.

    Args:
        kind: How it is loaded.
        path: A file or folder.
        context: The build's.
        enclosed: Whether the child is shut in; see :mod:`edgepack_packager.sources.enclosure`.
        sample: Example inputs, where another file has them.
        limits: What the child may take; None for what this machine can spare.

    Raises:
        ModelSourceError: It cannot be loaded, or ``no-sandbox``: the child cannot be shut in.
        ConversionError: It has no ONNX form.
    """
    digest = path_digest(path)
    child = Child(
        path.name,
        visible=[path.absolute(), path.resolve()],
        folder=context.folder,
        enclosed=enclosed,
        limits=limits or ChildLimits.of_this_machine(),
    )
    request = wire.Load(
        kind=kind,
        path=str(path.absolute()),
        digest=digest,
        columns=wire.to_tensors(context.columns),
        seed=context.seed,
        sample=wire.to_tensors(sample or {}),
    )
    loaded = _ask(child, request, wire.Loaded, path.name)
    return SourceModel(
        graph=read_graph(loaded.graph, path.name),
        digest=digest,
        framework=loaded.framework[:100],
        task=loaded.task,
        features=loaded.features,
        classes=loaded.classes,
        answer=_answer(child, path.name) if loaded.answers else None,
        tools=loaded.tools,
        passes=loaded.passes,
        sample=None if loaded.sample is None else _arrays(loaded.sample, path.name),
        warnings=loaded.warnings,
        wider=_wider(child, path.name) if loaded.widens else None,
    )


def _answer(child: Child, what: str) -> Answer:
    def answer(feeds: Feeds) -> Feeds:
        # a bounded part at a time, so that no reply is large
        parts = [
            _arrays(_ask(child, request, wire.Answered, what).outputs, what)
            for request in (wire.Ask(feeds=wire.to_tensors(p)) for p in chunks(feeds, ASKED_ROWS))
        ]
        return join_rows(parts)

    return answer


def _wider(child: Child, what: str) -> Callable[[], onnx.ModelProto]:
    return lambda: read_graph(_ask(child, wire.Widen(), wire.Widened, what).graph, what)


def _ask(child: Child, request: wire.Request, wanted: type[_Wanted], what: str) -> _Wanted:
    raw = child.ask(msgspec.msgpack.encode(request))
    try:
        reply = msgspec.msgpack.decode(raw, type=wire.Reply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        child.end()
        raise _garbled(what, str(error)) from error
    if isinstance(reply, wire.Failed):
        raise _failure(reply)
    if not isinstance(reply, wanted):
        child.end()
        raise _garbled(what, f"{type(reply).__name__} is no answer to {type(request).__name__}")
    return reply


def _failure(failed: wire.Failed) -> Exception:
    if failed.blame == "value":
        return ValueError(failed.words)
    return _BLAMES[failed.blame](failed.words, code=failed.code)


def _arrays(tensors: list[wire.Tensor], what: str) -> Feeds:
    try:
        return wire.from_tensors(tensors)
    except ValueError as error:
        raise _garbled(what, str(error)) from error


def _garbled(what: str, words: str) -> ModelSourceError:
    return ModelSourceError(
        f"the process that loads {what} gives no proper reply: {words}", code="source-garbled"
    )
