"""Who is judged on all rows: the fastest first, and nobody whom a proven one beats by far."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgepack_packager.evidence.figures import Figures
from edgepack_packager.evidence.gates import Gate, Verdict
from edgepack_packager.quantize.plan import FP32, Plan
from edgepack_packager.search import bench
from edgepack_packager.search.bench import Bench
from edgepack_packager.search.trials import Made
from edgepack_packager.targets import load_target
from edgepack_runtime.inference.trial import Latency

TARGET = load_target("x86-64-v3")
PLANS = {
    "fp32": FP32,
    "static": Plan(name="static", precision="int8-static"),
    "dynamic": Plan(name="dynamic", precision="int8-dynamic"),
    "stored": Plan(name="stored", precision="int8-weights"),
}


class Panel:
    """Judges what it is asked to, and remembers it."""

    remarks = ()

    def __init__(self):
        self.asked = []

    def judge(self, made):
        self.asked.append([item.plan.name for item in made])
        return {
            item.plan: Made(item.plan, item.folder, item.size_bytes, Figures(), None)
            for item in made
        }


def made(name, *, whole=False):
    return Made(PLANS[name], Path(name), 1000, Figures(), None, whole=whole)


@pytest.fixture
def judge(monkeypatch):
    """Judge candidates by their milliseconds; ``proven`` names those that pass every gate."""

    def verdicts(item, *_):
        gate = Gate("max-drop", "accuracy", "accuracy", 0.01, "points")
        passed = "pass" if item.plan.name in judge_them.proven else "inconclusive"
        return (Verdict(gate, passed, "words", 0.0),)

    def judge_them(paces, *, proven, whole=(), rivals=()):
        judge_them.proven = proven
        panel = Panel()
        recipe = SimpleNamespace(optimize="latency")
        subject = SimpleNamespace(exam=None, sample={"x": [0]})
        one = Bench(recipe, subject, panel, tell=print, tried=print)
        times = {name: Latency(ms, ms, ms) for name, ms in paces.items()}
        candidates = [made(name, whole=name in whole) for name in paces if name not in rivals]
        judged, beaten = one._judge(candidates, [made(r) for r in rivals], TARGET, times)
        return panel.asked, {plan.name: words for plan, words in beaten.items()}, judged

    monkeypatch.setattr(bench, "judge", verdicts)
    return judge_them


PACES = {"fp32": 9.0, "static": 3.0, "dynamic": 2.9, "stored": 8.0}


def test_what_a_proven_one_beats_is_not_judged_on_all_rows(judge):
    asked, beaten, judged = judge(PACES, proven={"static"}, whole={"fp32"})
    assert asked == [["fp32", "static", "dynamic"]]
    assert beaten == {
        "stored": "slower by far than static, which is proven: 8000 us against 3000 us"
    }
    assert PLANS["fp32"] in judged


def test_what_is_faster_but_not_proven_beats_nobody(judge):
    asked, beaten, _ = judge(PACES, proven=set(), whole={"fp32"})
    assert asked == [["fp32", "static", "dynamic"], ["stored"]]
    assert beaten == {}


def test_float_beats_nobody(judge):
    asked, beaten, _ = judge({"fp32": 1.0, "stored": 8.0}, proven={"fp32"}, whole={"fp32"})
    assert sorted(name for names in asked for name in names) == ["fp32", "stored"]
    assert beaten == {}


def test_an_earlier_candidate_beats_later_ones(judge):
    asked, beaten, _ = judge({"static": 1.0, "stored": 8.0}, proven={"static"}, rivals={"static"})
    assert [name for names in asked for name in names] == []
    assert list(beaten) == ["stored"]


def test_without_times_all_are_judged_together(judge):
    panel_asked, beaten, _ = judge({}, proven={"static"})
    assert panel_asked == []
    assert beaten == {}


def test_microseconds_are_no_reason(judge):
    asked, beaten, _ = judge({"static": 0.01, "stored": 0.05}, proven={"static"})
    assert asked == [["static", "stored"]]
    assert beaten == {}
