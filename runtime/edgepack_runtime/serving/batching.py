"""Requests that come together are answered by one run: their rows are joined, and split again.

Only for a model whose every input and output has one row per row of the request, and whose answers
to a row do not depend on the rows beside it: dynamic quantisation, for one, takes its scale from
the whole batch. The golden rows tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgepack_contract.description import Description
from edgepack_runtime.inference.errors import GoldenError, ModelRunError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.errors import OverloadError
from edgepack_runtime.serving.model import ServingModel

Feeds = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
Key = tuple[tuple[str, str, tuple[int, ...]], ...]
Run = Callable[[Feeds], Awaitable[Outputs]]

_EXACT_SIZES = 64


def why_not_by_rows(description: Description) -> str | None:
    """Why the rows of two requests cannot be joined, None when they can."""
    firsts = {spec.shape[0] if spec.shape else 0 for spec in description.inputs}
    if len(firsts) != 1 or not isinstance(firsts.pop(), str):
        return "its inputs do not all have the same named, dynamic first dimension"
    # whether the dynamic dimension of an output is the rows, the golden rows see
    alien = [one.name for one in description.outputs if not isinstance([*one.shape, 0][0], str)]
    return f"output {alien[0]!r} has no row for each row of the input" if alien else None


def why_not_batched(model: ServingModel) -> str | None:
    """Why requests to a model are not joined, None when they can be. Slow: runs its golden rows."""
    words = why_not_by_rows(model.description)
    if words is not None:
        return words
    try:
        result = model.check_joined()
    except (ModelRunError, GoldenError) as error:
        return f"it fails on several rows at once: {error}"
    return (
        None if result.ok else f"it answers joined rows otherwise than single ones: {result.words}"
    )


@dataclass(slots=True)
class _Waiting:
    feeds: Feeds
    rows: int
    answer: asyncio.Future[Outputs]


@dataclass(slots=True)
class _Batch:
    asked: list[_Waiting] = field(default_factory=list)
    rows: int = 0
    due: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Runs:
    """Runs of one size: how many, and what they took."""

    count: int = 0
    nanoseconds: int = 0


class Batcher:
    """Joins the requests to one model. Used on the event loop.

    Args:
        run: Computes the joined rows.
        rows: The most rows of a run; a larger request has a run of its own.
        delay_s: How long the first request waits for others.
        most_waiting: How many requests may wait.
    """

    def __init__(self, run: Run, *, rows: int, delay_s: float, most_waiting: int) -> None:
        self._run, self._rows, self._delay = run, rows, delay_s
        self._most_waiting = most_waiting
        self._waiting = 0
        self._batches: dict[Key, _Batch] = {}
        self._runs: dict[int, _Runs] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, feeds: Feeds) -> Outputs:
        """Answer one request, perhaps together with others.

        Args:
            feeds: Checked against the description; every array has the same number of rows.

        Raises:
            OverloadError: Too many wait already.
            ModelRunError: The model failed on this request.
        """
        if self._waiting >= self._most_waiting:
            raise OverloadError(f"{self._waiting} requests wait to be joined already")
        rows = len(next(iter(feeds.values())))
        self._waiting += 1
        try:
            if not 0 < rows < self._rows:
                return await self._timed(feeds, rows)
            return await self._join(feeds, rows)
        finally:
            self._waiting -= 1

    def stats(self) -> list[dict[str, Any]]:
        """``batch_stats`` of the statistics extension.

        Sizes over 64 are counted with the power of two above them. Joining and splitting are not
        measured apart.
        """
        none = {"count": 0, "ns": 0}
        return [
            {
                "batch_size": size,
                "compute_input": none,
                "compute_infer": {"count": runs.count, "ns": runs.nanoseconds},
                "compute_output": none,
            }
            for size, runs in sorted(self._runs.items())
        ]

    async def _join(self, feeds: Feeds, rows: int) -> Outputs:
        loop, key = asyncio.get_running_loop(), _key(feeds)
        batch = self._batches.get(key)
        if batch is not None and batch.rows + rows > self._rows:
            self._begin(key)
            batch = None
        if batch is None:
            batch = self._batches[key] = _Batch()
            batch.due = loop.call_later(self._delay, self._begin, key)
        waiting = _Waiting(feeds, rows, loop.create_future())
        batch.asked.append(waiting)
        batch.rows += rows
        if batch.rows == self._rows:
            self._begin(key)
        return await waiting.answer

    def _begin(self, key: Key) -> None:
        batch = self._batches.pop(key)
        if batch.due is not None:
            batch.due.cancel()
        task = asyncio.get_running_loop().create_task(self._answer(batch.asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, asked: Sequence[_Waiting]) -> None:
        # whoever gave up meanwhile costs nobody a row
        asked = [one for one in asked if not one.answer.done()]
        try:
            if len(asked) == 1:
                await self._answer_one(asked[0])
            elif asked:
                await self._answer_together(asked)
        except Exception as error:  # noqa: BLE001 - every one of them must hear of it
            for one in asked:
                _fail(one, error)

    async def _answer_together(self, asked: Sequence[_Waiting]) -> None:
        rows = [one.rows for one in asked]
        try:
            outputs = await self._timed(_joined([one.feeds for one in asked]), sum(rows))
            parts = _split(outputs, rows)
        except ModelRunError:
            # one of them may be at fault: nobody pays for another's
            await asyncio.gather(*(self._answer_one(one) for one in asked))
        else:
            for one, part in zip(asked, parts, strict=True):
                if not one.answer.done():
                    one.answer.set_result(part)

    async def _answer_one(self, one: _Waiting) -> None:
        try:
            outputs = await self._timed(one.feeds, one.rows)
        except (ModelRunError, OverloadError) as error:
            _fail(one, error)
        else:
            if not one.answer.done():
                one.answer.set_result(outputs)

    async def _timed(self, feeds: Feeds, rows: int) -> Outputs:
        begun = perf_counter_ns()
        outputs = await self._run(feeds)
        runs = self._runs.setdefault(_size(rows), _Runs())
        runs.count += 1
        runs.nanoseconds += perf_counter_ns() - begun
        return outputs


def _fail(one: _Waiting, error: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(error)


def _key(feeds: Feeds) -> Key:
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in feeds.items())


def _joined(feeds: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}


def _split(outputs: Outputs, rows: Sequence[int]) -> list[Outputs]:
    """The outputs of each request.

    Raises:
        ModelRunError: An output has other rows than were asked for.
    """
    total, ends = sum(rows), np.cumsum(rows).tolist()
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != total:
            raise ModelRunError(f"output {name!r} of {total} rows has the shape {array.shape}")
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for count, end in zip(rows, ends, strict=True)
    ]


def _size(rows: int) -> int:
    return rows if rows <= _EXACT_SIZES else 1 << (rows - 1).bit_length()
