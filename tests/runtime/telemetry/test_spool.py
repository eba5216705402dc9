"""The spool keeps what it accepted, through kill -9, a full disk and a long time offline."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.latency import LatencyColumns
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Event, EventKind
from edgepack_contract.window import Window, WindowBody, parse_window
from edgepack_runtime.telemetry.spool import IN_FLIGHT, Spool, SpoolError

BUNDLE = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64
ROOMY = 10**9


def body(n: int = 1, *, slot: str = "main", bundle: str = BUNDLE, start: int = 0) -> WindowBody:
    latency = LatencyColumns(offset=-200, counts=[n])
    return WindowBody(
        slot=slot, bundle=bundle, reference=None, start_ms=start, end_ms=start + 1000, n=n, rows=n,
        latency=latency,
    )  # fmt: skip


def event(*, session: int = 1, slot: str = "main", words: str = "it broke") -> Event:
    return Event(
        session=session, sequence=0, at=5, slot=slot, kind=EventKind.FALLBACK, digest=BUNDLE,
        code="errors", words=words,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def contents(spool: Spool) -> list[dict]:
    """Everything that waits, oldest first; leaves the spool handed over."""
    spool.forget_in_flight()
    return [json.loads(item.body) for item in spool.hand_over(limit=10**6)]


def test_sequences_are_counted_per_session_and_slot(path):
    with Spool(path) as spool:
        assert [spool.append_window(1, body()) for _ in range(3)] == [1, 2, 3]
        assert spool.append_event(event()) == 4
        assert spool.append_window(1, body(slot="second")) == 1
        assert spool.append_window(2, body()) == 1
        items = spool.hand_over()
    assert [(item.session, item.slot, item.first) for item in items] == [
        (1, "main", 1), (1, "main", 2), (1, "main", 3), (1, "main", 4), (1, "second", 1),
        (2, "main", 1),
    ]  # fmt: skip
    assert (items[3].kind, items[3].name) == ("event", "fallback")
    assert json.loads(items[3].body)["sequence"] == 4
    window = parse_window(items[1].body)
    assert (items[1].name, window.first, window.last, window.session) == ("main", 2, 2, 1)


def test_sequences_go_on_after_everything_was_acknowledged(path):
    with Spool(path) as spool:
        spool.append_window(1, body())
        spool.hand_over()
        assert spool.acknowledge("main", 1, 1) == 1
    with Spool(path) as spool:
        assert spool.append_window(1, body()) == 2


def test_no_more_is_in_flight_than_allowed(path):
    with Spool(path) as spool:
        for _ in range(IN_FLIGHT + 5):
            spool.append_window(1, body())
        first = spool.hand_over()
        assert [item.first for item in first] == list(range(1, IN_FLIGHT + 1))
        assert spool.hand_over() == []
        spool.acknowledge("main", 1, 3)
        assert [item.first for item in spool.hand_over()] == [21, 22, 23]
        spool.forget_in_flight()
        assert [item.first for item in spool.hand_over()] == list(range(4, 24))


def test_what_was_handed_over_comes_again_unchanged_after_a_restart(path):
    with Spool(path) as spool:
        for n in range(1, 4):
            spool.append_window(1, body(n))
        before = spool.hand_over(limit=2)
    with Spool(path) as spool:
        assert spool.backlog().handed == 2
        assert spool.hand_over()[:2] == before


def test_only_what_was_handed_over_can_be_acknowledged(path):
    with Spool(path) as spool:
        for _ in range(3):
            spool.append_window(1, body())
        spool.hand_over(limit=1)
        assert spool.acknowledge("main", 1, 99) == 1
        assert spool.acknowledge("main", 2, 99) == 0
        assert spool.acknowledge("other", 1, 99) == 0
        assert [window["first"] for window in contents(spool)] == [2, 3]


def test_a_full_spool_merges_and_loses_no_count(path):
    with Spool(path, max_bytes=20_000) as spool:
        for n in range(1, 301):
            spool.append_window(1, body(n, start=1000 * n))
        backlog = spool.backlog()
        windows = contents(spool)
    assert backlog.dropped == 0
    assert backlog.bytes <= 20_000
    assert backlog.items < 100
    assert sum(window["n"] for window in windows) == 300 * 301 // 2
    assert sum(sum(window["latency"]["counts"]) for window in windows) == 300 * 301 // 2
    covered = [s for window in windows for s in range(window["first"], window["last"] + 1)]
    assert covered == list(range(1, 301))
    # resolution is lost evenly: no window swallows all others
    assert max(window["merged"] for window in windows) <= 64


def test_what_was_handed_over_is_never_merged(path):
    with Spool(path, max_bytes=20_000) as spool:
        for n in range(1, 6):
            spool.append_window(1, body(n))
        before = spool.hand_over()
        for n in range(1, 201):
            spool.append_window(1, body(n))
        spool.forget_in_flight()
        assert spool.hand_over()[:5] == before


def test_windows_of_different_bundles_sessions_and_slots_stay_apart(path):
    kinds = [(1, "main", BUNDLE), (1, "main", OTHER), (1, "second", BUNDLE), (2, "main", BUNDLE)]
    with Spool(path, max_bytes=9_000) as spool:
        for session, slot, bundle in kinds * 3 + sorted(kinds * 20):
            spool.append_window(session, body(slot=slot, bundle=bundle))
        backlog, windows = spool.backlog(), contents(spool)
    totals = Counter()
    for window in windows:
        totals[window["session"], window["slot"], window["bundle"]] += window["n"]
    assert sum(totals.values()) + backlog.dropped == 23 * len(kinds)
    assert set(totals) == set(kinds)


def test_when_nothing_is_left_to_merge_the_oldest_is_dropped_and_counted(path):
    with Spool(path, max_bytes=3_000) as spool:
        for place in range(30):
            spool.append_event(event(words=f"number {place}"))
        backlog, left = spool.backlog(), contents(spool)
    assert backlog.bytes <= 3_000
    assert backlog.dropped == 30 - len(left)
    assert [item["words"] for item in left] == [f"number {p}" for p in range(30 - len(left), 30)]
    assert left[-1]["sequence"] == 30


def test_the_newest_item_is_kept_however_small_the_spool(path):
    with Spool(path, max_bytes=1) as spool:
        spool.append_event(event(words="first"))
        spool.append_event(event(words="second"))
        assert [item["words"] for item in contents(spool)] == ["second"]


def test_what_could_never_be_sent_is_refused_and_takes_no_sequence(path):
    with Spool(path) as spool:
        with pytest.raises(SpoolError, match="cannot be sent") as refused:
            spool.append_event(event(words="x" * LIMITS.message_bytes))
        assert refused.value.code == "too-large"
        assert spool.append_event(event()) == 1


def fill(spool: Spool) -> None:
    for _ in range(1000):
        spool.append_event(event(words="x" * 3000))


def test_a_full_disk_is_an_error_and_leaves_the_spool_whole(path):
    with Spool(path) as spool:
        spool.append_window(1, body())
        pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
        spool._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(SpoolError, match="full"):
            fill(spool)
        kept = spool.backlog().items
        spool._db.execute("PRAGMA max_page_count = 100000")
        assert spool.append_window(1, body()) == kept + 1


def test_a_damaged_file_is_named(path):
    path.write_bytes(b"this is not a database, not at all" * 100)
    with pytest.raises(SpoolError, match=r"spool\.db"):
        Spool(path)


def test_every_commit_waits_for_the_disk(path):
    with Spool(path) as spool:
        assert spool._db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert spool._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("window"), st.integers(1, 50)),
        st.tuples(st.just("event"), st.just(0)),
        st.tuples(st.just("hand"), st.integers(1, 6)),
        st.tuples(st.just("ack"), st.integers(0, 40)),
        st.tuples(st.just("forget"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_every_count_is_waiting_or_acknowledged(tmp_path_factory, steps):
    """A fleet that takes every item once, and refuses what overlaps, ends with the exact sum."""
    place = tmp_path_factory.mktemp("spool") / "spool.db"
    spool, appended, fleet = Spool(place, max_bytes=4_000), 0, {}
    for what, number in [*steps, ("restart", 0), ("hand", 10**6)]:
        if what == "window":
            spool.append_window(1, body(number))
            appended += number
        elif what == "event":
            spool.append_event(event())
        elif what == "hand":
            for item in spool.hand_over(limit=number):
                assert fleet.setdefault((item.first, item.last), item.body) == item.body
        elif what == "ack":
            through = 0
            while run := next((last for first, last in fleet if first == through + 1), None):
                through = run
            spool.acknowledge("main", 1, min(number, through))
        elif what == "forget":
            spool.forget_in_flight()
        else:
            spool.close()
            spool = Spool(place, max_bytes=4_000)
    dropped = spool.backlog().dropped
    spool.close()
    covered = sorted(s for first, last in fleet for s in range(first, last + 1))
    assert len(covered) == len(set(covered))
    windows = [parse_window(raw) for raw in fleet.values() if b'"kind"' not in raw]
    if not dropped:
        assert sum(window.n for window in windows) == appended
        assert covered == list(range(1, len(covered) + 1))


KILLED = """
import sys
from pathlib import Path
from edgepack_contract.window import WindowBody
from edgepack_runtime.telemetry.spool import Spool

session = int(sys.argv[2])
spool = Spool(Path(sys.argv[1]), max_bytes=int(sys.argv[3]))
place = 0
while True:
    place += 1
    body = WindowBody(slot="main", bundle="sha256:" + "1" * 64, reference=None,
                      start_ms=place, end_ms=place + 1, n=1, rows=1)
    sequence = spool.append_window(session, body)
    sys.stdout.write(f"{sequence}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("max_bytes", [ROOMY, 15_000], ids=["roomy", "merging"])
def test_kill_minus_nine_loses_nothing_that_was_accepted(path, max_bytes):
    accepted = {}
    for session, wanted in enumerate((1, 2, 5, 17, 40), start=1):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(session), str(max_bytes)],
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            lines = [process.stdout.readline() for _ in range(wanted)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        told = [int(line) for line in lines if line.endswith("\n")]
        assert told == list(range(1, len(told) + 1))
        accepted[session] = len(told)
    with Spool(path, max_bytes=max_bytes) as spool:
        assert spool._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        windows = [parse_window(item.body) for item in spool.hand_over(limit=10**6)]
        assert spool.backlog().dropped == 0
    check_runs(windows, accepted)


def check_runs(windows: list[Window], accepted: dict[int, int]) -> None:
    """Each session is complete from 1 on; at most the one item in flight at the kill is extra."""
    for session, count in accepted.items():
        own = [window for window in windows if window.session == session]
        covered = [s for window in own for s in range(window.first, window.last + 1)]
        assert covered == list(range(1, len(covered) + 1))
        assert len(covered) - count in (0, 1)
        assert sum(window.n for window in own) == len(covered)


def test_a_locked_database_is_an_error_with_words(path):
    with Spool(path) as spool:
        spool._db.execute("PRAGMA busy_timeout = 0")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SpoolError, match="locked"):
            spool.append_window(1, body())
        other.execute("ROLLBACK")
        other.close()
        assert spool.append_window(1, body()) == 1
