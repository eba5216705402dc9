"""``/metrics``: what is in it, and what Prometheus' own tool says of it."""

from __future__ import annotations

import re
import subprocess

import pytest

from edgepack_contract.messages import CandidateMode
from edgepack_contract.states import Phase
from edgepack_runtime.serving.app import App
from edgepack_runtime.telemetry.backlog import Backlog

ROW = [0.5, -1.0, 2.0, 0.0]


@pytest.fixture(scope="module")
def text(make_world, load):
    """The metrics of a daemon in which everything happens."""
    world = make_world()
    slot = world.add("pump", load("v1", version="1.0.0"))
    world.add("empty")
    world.call(lambda: slot.candidate.swap(load("v2", version="2.0.0"), keep_previous=False))
    world.call(lambda: slot.candidate.settle(CandidateMode.SPLIT, 0.0))
    app = App(
        world.slots,
        phase_of={"pump": Phase.PROBATION}.get,
        refusals={"not-newer": 2},
        backlog=lambda: Backlog(items=3, handed=1, bytes=900, dropped=4),
    )
    world.start(app, host="127.0.0.1")
    for _ in range(3):
        assert world.ask("POST", "/predict/batch", [ROW, ROW]).status == 400
        world.ask("POST", "/v1/models/pump:predict", {"instances": [ROW, ROW]})
    world.ask("POST", "/v1/models/pump:predict", {"instances": [[1]]})
    return world.ask("GET", "/metrics").raw.decode()


def values_of(text):
    rows = [row for row in text.splitlines() if not row.startswith("#")]
    return {name: float(value) for name, value in (row.rsplit(" ", 1) for row in rows)}


def test_what_is_counted(text):
    values = values_of(text)
    for name, value in {
        'edgepack_requests_total{slot="pump"}': 3,
        'edgepack_rows_total{slot="pump"}': 6,
        'edgepack_errors_total{slot="pump",kind="shape"}': 1,
        'edgepack_ready{slot="pump"}': 1,
        'edgepack_ready{slot="empty"}': 0,
        'edgepack_slot_phase{slot="pump",phase="probation"}': 1,
        'edgepack_model_runs_total{slot="pump",role="active"}': 3,
        'edgepack_model_runs_total{slot="pump",role="split"}': 0,
        'edgepack_refused_documents_total{code="not-newer"}': 2,
        'edgepack_waiting_requests{slot="pump"}': 0,
        "edgepack_spool_items": 3,
        "edgepack_spool_bytes": 900,
        "edgepack_spool_dropped_items_total": 4,
    }.items():
        assert values[name] == value, name
    assert values["process_resident_memory_bytes"] > 1e6
    assert values["process_open_fds"] > 3
    assert (
        values["process_start_time_seconds"]
        < values['edgepack_model_since_seconds{slot="pump",role="active"}']
    )
    steps = [value for name, value in values.items() if "step_seconds_total" in name]
    assert sum(steps) == pytest.approx(values['edgepack_request_seconds_sum{slot="pump"}'])


def test_each_model_is_named_with_what_it_is_for(text):
    told = re.findall(r'edgepack_model_info\{slot="pump",role="(\w+)",.*version="([\d.]+)"', text)
    assert told == [("active", "1.0.0"), ("split", "2.0.0")]


@pytest.mark.foreign("promtool")
def test_promtool_has_nothing_to_say(text):
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
