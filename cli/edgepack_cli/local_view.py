"""What the commands for a single device print: plain text, since a device has no rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edgepack_cli.output import bytes_text, table

if TYPE_CHECKING:
    from edgepack_contract.messages import CandidateReported
    from edgepack_runtime.activation.history import Record
    from edgepack_runtime.local.view import BundleView, DeviceView, SlotView
    from edgepack_runtime.local.why import Explanation


def status_lines(view: DeviceView) -> Iterator[str]:
    """The lines of ``edgepack local status``."""
    yield _head(view)
    yield from _links(view)
    yield f"{_size(view.disk_free)} free on the disk, {_size(view.memory_available)} of memory"
    for one in view.certificates:
        until = f"until {moment(one.expires)}" if one.expires is not None else one.problem
        yield f"{one.what}: {until}"
    yield ""
    yield slots_table(view.slots) if view.slots else "no slot yet"
    for slot in view.slots:
        if slot.words or slot.code:
            yield f"{slot.name}: {slot.words} [{slot.code}]"


def slots_table(slots: Sequence[SlotView]) -> str:
    """The slots, a line each."""
    headings = (
        "SLOT", "PHASE", "SERVING", "SINCE", "REQUESTS", "ERRORS", "PREVIOUS", "WANTED", "CANDIDATE"
    )  # fmt: skip
    return table(headings, [_row(slot) for slot in slots])


def history_table(records: Sequence[tuple[str, Record]]) -> str:
    """The records of slots, newest first."""
    rows = [
        (moment(one.at), slot, one.outcome, one.version or "-", digest(one.digest), one.code,
         one.words)
        for slot, one in records
    ]  # fmt: skip
    return table(("WHEN", "SLOT", "OUTCOME", "VERSION", "DIGEST", "CODE", "WORDS"), rows)


def why_lines(slot: SlotView, told: Explanation) -> Iterator[str]:
    """The sentences of ``edgepack local why``."""
    yield f"{slot.name}: {slot.phase}"
    yield from (f"  {words}" for words in told.is_so)
    for title, sentences in (("What changes it", told.changes), ("What to do", told.remedies)):
        if sentences:
            yield f"{title}:"
            yield from (f"  {one}" for one in sentences)


def moment(at_ms: int | None) -> str:
    """A time for people, in UTC."""
    if at_ms is None:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def digest(text: str | None) -> str:
    """The first digits of a digest."""
    return text.removeprefix("sha256:")[:12] if text else "-"


def _head(view: DeviceView) -> str:
    name = f"device {view.device}" if view.device else view.state_dir
    if view.daemon is None:
        return f"{name}: no daemon runs; this is what the last one wrote down"
    one = view.daemon
    up = max(0, view.at - one.started) // 1000
    hours, minutes = divmod(up // 60, 60)
    return (
        f"{name}: daemon {one.version}, process {one.pid}, up {hours} h {minutes} min, "
        f"session {one.session}, keyring {one.keyring}"
    )


def _links(view: DeviceView) -> Iterator[str]:
    if view.broker is not None:
        words = {True: "connected", False: "not connected", None: "unknown"}[view.broker.connected]
        yield f"broker {view.broker.address}: {words}"
    if view.daemon is not None:
        spool = view.daemon.spool
        yield f"{spool.items} items ({bytes_text(spool.bytes)}) wait for the fleet"
        if view.daemon.refused:
            yield f"an order is refused: {view.daemon.refused}"
        if view.daemon.clock_behind:
            yield "the clock is behind what signed documents prove"


def _row(slot: SlotView) -> tuple[object, ...]:
    live = slot.live
    return (
        slot.name,
        slot.phase,
        _bundle(slot.serving),
        moment(live.since) if live else "-",
        live.requests if live else "-",
        live.errors if live else "-",
        _bundle(slot.previous),
        _bundle(slot.pending or slot.wanted),
        _candidate(slot.candidate) if slot.candidate else "-",
    )


def _candidate(one: CandidateReported) -> str:
    return f"{one.version or digest(one.wanted)} {one.mode} {100 * one.share:g} % {one.phase}"


def _bundle(one: BundleView | None) -> str:
    if one is None:
        return "-"
    return f"{one.version} {digest(one.digest)}" if one.version else digest(one.digest)


def _size(size: int | None) -> str:
    return "unknown" if size is None else bytes_text(size)
