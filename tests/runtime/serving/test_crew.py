"""Threads that the process can leave behind."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from edgepack_runtime.serving.crew import MOST_LOST, Crew

DEADLINE = 30.0


@pytest.fixture
def crew():
    crew = Crew(1, "test")
    yield crew
    crew.stop(DEADLINE)


def test_jobs_are_done_in_their_order_and_errors_come_back(crew):
    seen = []
    jobs = [crew.submit(lambda number=number: seen.append(number)) for number in range(5)]
    for job in jobs:
        job.result(DEADLINE)
    assert seen == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        crew.submit(lambda: 1 // 0).result(DEADLINE)


def test_a_job_that_has_not_begun_can_be_cancelled(crew):
    go_on = threading.Event()
    first = crew.submit(lambda: go_on.wait(DEADLINE))
    second = crew.submit(lambda: 7)
    assert second.cancel()
    go_on.set()
    assert first.result(DEADLINE)
    assert crew.submit(lambda: 8).result(DEADLINE) == 8


def test_a_thread_that_hangs_is_replaced_until_it_comes_back(crew):
    go_on = threading.Event()
    stuck = crew.submit(lambda: go_on.wait(DEADLINE))
    crew.replace(stuck)
    assert crew.lost == 1
    assert crew.submit(lambda: 7).result(DEADLINE) == 7
    go_on.set()
    assert stuck.result(DEADLINE)
    assert crew.submit(lambda: crew.lost).result(DEADLINE) == 0


def test_only_so_many_threads_are_replaced():
    crew, go_on = Crew(1, "test"), threading.Event()
    for _ in range(MOST_LOST):
        crew.replace(crew.submit(lambda: go_on.wait(DEADLINE)))
    last = crew.submit(lambda: go_on.wait(DEADLINE))
    crew.replace(last)
    assert crew.lost == MOST_LOST
    go_on.set()
    assert last.result(DEADLINE)
    crew.stop(DEADLINE)


def test_a_thread_that_hangs_keeps_no_process_alive():
    script = (
        "import threading; from edgepack_runtime.serving.crew import Crew\n"
        "crew, begun = Crew(1, 'test'), threading.Event()\n"
        "job = crew.submit(lambda: (begun.set(), threading.Event().wait()))\n"
        "begun.wait(); crew.replace(job); crew.stop(1.0); print('ended')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], timeout=60, check=True, capture_output=True, text=True
    )
    assert ended.stdout == "ended\n"
