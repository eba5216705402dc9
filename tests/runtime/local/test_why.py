"""Every state of a slot is explained, with what changes it and what to do."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgepack_contract.messages import CandidateReported, Ref
from edgepack_contract.states import Phase
from edgepack_runtime.activation.state import Installed, Lost, SlotState, Wish
from edgepack_runtime.local.view import (
    BrokerView,
    CaptureView,
    DaemonView,
    DeviceView,
    LiveView,
    SpoolView,
    slot_view,
)
from edgepack_runtime.local.why import explain

GOOD = Installed(digest="sha256:" + "a" * 64, name="churn", version="1.0.0", security_version=1)
NEW = replace(GOOD, digest="sha256:" + "b" * 64, version="1.1.0")
WANTS_NEW = Wish(ref=Ref(name="churn", digest=NEW.digest, sources=[]))
RUNS = SlotState(phase=Phase.SUCCEEDED, active=GOOD)
DAEMON = DaemonView(
    pid=1, version="1", session=2, started=3, memory=None, refused=None, keyring=1,
    clock_behind=False, spool=SpoolView(items=0, bytes=0, dropped=0),
    capture=CaptureView(share=0.0, kept=0, dropped=0),
)  # fmt: skip
DEVICE = DeviceView(
    device="pi", state_dir="/s", at=9, slots=[], daemon=DAEMON,
    broker=BrokerView(address="b:1", connected=True),
)  # fmt: skip


def told(state, device=DEVICE, **changes) -> str:
    slot = replace(slot_view("main", state), **changes)
    found = explain(slot, device)
    return "\n".join([*found.is_so, "--", *found.changes, "--", *found.remedies])


@pytest.mark.parametrize("phase", list(Phase), ids=str)
def test_every_phase_has_something_to_say(phase):
    trial = NEW if phase not in (Phase.IDLE, Phase.DOWNLOADING) else None
    state = replace(RUNS, phase=phase, wanted=WANTS_NEW, trial=trial, code="c", words="so it is")
    assert len(told(state)) > 60


@pytest.mark.parametrize(
    ("state", "sentences"),
    [
        (SlotState(), ["nobody has asked for a bundle yet", "install FILE --slot main"]),
        (SlotState(code="emptied-here"), ["somebody at the device has emptied it"]),
        (replace(RUNS, phase=Phase.DOWNLOADING, wanted=WANTS_NEW),
         ["churn (bbbbbbbbbbbb) is being fetched", "falls back to churn 1.0.0 (aaaaaaaaaaaa)"]),
        (replace(RUNS, phase=Phase.PROBING, wanted=WANTS_NEW, trial=NEW, attempts=2),
         ["churn 1.1.0", "attempt 2", "it goes on by itself"]),
        (replace(RUNS, phase=Phase.FAILED, wanted=WANTS_NEW, code="disk-full", words="no room"),
         ["was not installed: no room [disk-full]", "was not touched", "free some space"]),
        (replace(RUNS, phase=Phase.REJECTED, wanted=WANTS_NEW, code="blocked", words="it failed"),
         ["was refused", "--retry-blocked"]),
        (replace(RUNS, phase=Phase.FELL_BACK, code="errors", words="2 of 3", blocked=(NEW.digest,)),
         ["misbehaved, so churn 1.0.0", "bbbbbbbbbbbb last", "retry_blocked releases it"]),
        (SlotState(phase=Phase.SAFE_MODE, code="crash-loop", words="ended 3 times"),
         ["answers 503: ended 3 times [crash-loop]", "install FILE --slot main"]),
        (SlotState(phase=Phase.SAFE_MODE, code="load-failed", lost=Lost(bundle=GOOD, tries=2)),
         ["churn 1.0.0", "which worked last, is tried again from time to time, 2 times so far"]),
        (replace(RUNS, phase=Phase.PROBATION, trial=NEW, active=None),
         ["if it fails, the slot is in safe mode"]),
    ],
    ids=["new", "emptied", "fetching", "probing", "full", "blocked", "fell-back", "safe", "lost",
         "first"],
)  # fmt: skip
def test_why(state, sentences):
    words = told(state)
    assert [one for one in sentences if one not in words] == [], words


def test_what_keeps_orders_away_is_said():
    daemon = replace(DAEMON, refused="expired: it ended in May", clock_behind=True)
    broker = BrokerView(address="b:1", connected=False)
    words = told(RUNS, replace(DEVICE, daemon=daemon, broker=broker))
    assert "an order is refused: expired: it ended in May" in words
    assert "no connection to the broker b:1" in words
    assert "the clock is behind" in words


def test_without_a_daemon_it_says_so_first():
    words = told(RUNS, replace(DEVICE, daemon=None))
    assert words.startswith("no daemon runs, so nothing answers")
    assert "systemctl start edgepack" in words


def test_a_candidate_and_a_useless_factory_bundle_are_told():
    candidate = CandidateReported(
        phase=Phase.REJECTED, running=None, version=None, wanted=NEW.digest, mode="shadow",
        share=0.5, words="no-memory",
    )  # fmt: skip
    live = LiveView(factory_trouble="it is unsigned")
    words = told(RUNS, candidate=candidate, live=live)
    assert "a candidate is beside it (shadow, 50 %): rejected no-memory" in words
    assert "its factory bundle is of no use: it is unsigned" in words
