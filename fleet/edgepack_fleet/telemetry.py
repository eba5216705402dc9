"""Windows and events of devices: committed once each, whatever is sent again.

Every item has its place in the sequence of (device, slot, session). The database keeps which runs
of sequences it has; what is there already is acknowledged again and counted once, what overlaps in
part is refused. ``through`` is the end of the run that begins at 1: the device may delete that far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from edgepack_contract.messages import Event, EventKind
from edgepack_contract.window import Window
from edgepack_fleet.db.schema import DeviceEventRow, Gap, ReceivedInterval, WindowRow
from edgepack_fleet.rollout.evidence import Block, BlockQuery, block_of


class Taken(StrEnum):
    """What became of an item."""

    NEW = "new"
    REPEATED = "repeated"
    OVERLAP = "overlap"


@dataclass(frozen=True, slots=True)
class Stream:
    """One sequence: items of one slot in one session of one device."""

    device: str
    slot: str
    session: int


def take_interval(session: Session, stream: Stream, first: int, last: int, now_ms: int) -> Taken:
    """Add ``first`` to ``last`` to what is received, joining runs that now touch."""
    # every run that overlaps or touches the new one; normally the one run that it continues
    near = session.scalars(
        _runs(stream).where(ReceivedInterval.first <= last + 1, ReceivedInterval.last >= first - 1)
    ).all()
    if any(run.first <= first and last <= run.last for run in near):
        return Taken.REPEATED
    if any(run.first <= last and first <= run.last for run in near):
        return Taken.OVERLAP
    before = next((run for run in near if run.last == first - 1), None)
    after = next((run for run in near if run.first == last + 1), None)
    end = last if after is None else after.last
    if after is not None:
        session.delete(after)
    if before is not None:
        before.last = end
    else:
        session.add(
            ReceivedInterval(
                device=stream.device,
                slot=stream.slot,
                session=stream.session,
                first=first,
                last=end,
                since_ms=now_ms,
            )
        )
    session.flush()
    return Taken.NEW


def through(session: Session, stream: Stream) -> int:
    """How far the sequence is complete from 1 on; 0 when its first item is missing."""
    run = session.get(ReceivedInterval, (stream.device, stream.slot, stream.session, 1))
    return 0 if run is None else run.last


def store_window(
    session: Session, device: str, window: Window, body: bytes, *, offset_ms: int, now_ms: int
) -> Taken:
    """Keep a window, once. ``offset_ms`` brings the device's clock to the fleet's."""
    stream = Stream(device, window.slot, window.session)
    taken = take_interval(session, stream, window.first, window.last, now_ms)
    if taken is Taken.NEW:
        block = block_of(window, start_ms=window.start_ms + offset_ms)
        # nobody got the answers of a shadow, so they are in no sum of answers
        answered = window.role != "shadow"
        session.add(
            WindowRow(
                device=device,
                slot=window.slot,
                session=window.session,
                first=window.first,
                last=window.last,
                digest=window.bundle,
                start_ms=block.start_ms,
                end_ms=window.end_ms + offset_ms,
                n=window.n * answered,
                rows=window.rows * answered,
                errors=window.errors * answered,
                over_budget=window.over_budget * answered,
                block=msgspec.json.encode(block),
                body=body,
                received_ms=now_ms,
            )
        )
    return taken


def store_event(session: Session, device: str, event: Event, *, now_ms: int) -> Taken:
    """Keep an event, once."""
    stream = Stream(device, event.slot, event.session)
    taken = take_interval(session, stream, event.sequence, event.sequence, now_ms)
    if taken is Taken.NEW:
        session.add(
            DeviceEventRow(
                device=device,
                slot=event.slot,
                session=event.session,
                sequence=event.sequence,
                kind=event.kind.value,
                digest=event.digest,
                code=event.code,
                words=event.words,
                evidence=event.evidence,
                at_ms=event.at,
                received_ms=now_ms,
            )
        )
    return taken


def load_blocks(
    session: Session, queries: Sequence[BlockQuery]
) -> Mapping[str, Mapping[str, Sequence[Block]]]:
    """The blocks that were asked for, by device and digest, oldest first.

    Those of a time as a candidate are left out: it saw chosen inputs, beside the model that a
    rollout compares with.
    """
    found: dict[str, dict[str, list[Block]]] = {}
    for query in queries:
        rows = session.scalars(
            select(WindowRow.block)
            .where(WindowRow.digest == query.digest)
            .where(WindowRow.device == query.device)
            .where(WindowRow.start_ms >= query.from_ms)
            .order_by(WindowRow.start_ms)
        )
        every = (msgspec.json.decode(raw, type=Block) for raw in rows)
        blocks = [block for block in every if block.role == "active"]
        if blocks:
            found.setdefault(query.device, {})[query.digest] = blocks
    return found


def count_crashes(session: Session, digest: str, *, since_ms: int) -> dict[str, int]:
    """Crashes with a bundle since a time, by device; those without are absent."""
    rows = session.execute(
        select(DeviceEventRow.device, func.count())
        .where(DeviceEventRow.kind == EventKind.CRASH.value)
        .where(DeviceEventRow.digest == digest)
        .where(DeviceEventRow.received_ms >= since_ms)
        .group_by(DeviceEventRow.device)
    )
    return {row[0]: row[1] for row in rows}


def declare_gaps(session: Session, *, before_ms: int, now_ms: int) -> list[tuple[Stream, int]]:
    """Stop waiting for what is missing before runs that are there since ``before_ms``.

    A device sends its oldest items first, so a hole that stays is one that no item will fill: the
    device lost it, or this database was restored from a backup that is older than what the device
    was told to delete. The hole is written down as a gap, and the device may go on.

    Returns:
        The sequences that can now be acknowledged, and how far.
    """
    late = session.scalars(
        select(ReceivedInterval)
        .where(ReceivedInterval.first > 1, ReceivedInterval.since_ms <= before_ms)
        .order_by(ReceivedInterval.device, ReceivedInterval.first)
    ).all()
    released = []
    for run in late:
        stream = Stream(run.device, run.slot, run.session)
        before = select(func.max(ReceivedInterval.last)).where(
            *_is_stream(stream), ReceivedInterval.last < run.first
        )
        start = (session.scalar(before) or 0) + 1
        key = {"device": run.device, "slot": run.slot, "session": run.session}
        session.add(Gap(**key, first=start, last=run.first - 1, declared_ms=now_ms))
        take_interval(session, stream, start, run.first - 1, now_ms)
        released.append((stream, through(session, stream)))
    return released


def forget_windows(session: Session, *, before_ms: int) -> None:
    """Remove windows that were received before a time. What was received stays known."""
    session.execute(delete(WindowRow).where(WindowRow.received_ms < before_ms))


def _runs(stream: Stream) -> Select[ReceivedInterval]:
    return select(ReceivedInterval).where(*_is_stream(stream))


def _is_stream(stream: Stream) -> tuple[ColumnElement[bool], ...]:
    return (
        ReceivedInterval.device == stream.device,
        ReceivedInterval.slot == stream.slot,
        ReceivedInterval.session == stream.session,
    )
