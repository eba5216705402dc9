"""The panel: what the clock and the number of jobs may decide, and what they may not."""

import dataclasses
import threading

import numpy as np
import onnx
import pytest
from tests.packager.models import cnn

from edgepack_packager import Recipe
from edgepack_packager.quantize.plan import FP32, Plan
from edgepack_packager.search import panel as panels
from edgepack_packager.search.panel import Panel, Refused
from edgepack_packager.search.strategy import aim_for, static_plan
from edgepack_packager.subject import load_subject
from edgepack_packager.targets import load_target

STATIC = static_plan(aim_for(load_target("x86-64-v4-vnni")))
DYNAMIC = Plan(name="int8-dynamic", precision="int8-dynamic", per_channel=True)
NO_SUCH = Plan(name="int4-weights", precision="int4-weights", block=32)
PLANS = (FP32, STATIC, DYNAMIC, NO_SUCH)


class Clock:
    """Seconds that pass only when it is looked at."""

    def __init__(self, tick=0.0):
        self.now, self.tick = 0.0, tick

    def __call__(self):
        self.now += self.tick
        return self.now


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    onnx.save(cnn(32), folder / "m.onnx")
    x = np.random.default_rng(0).standard_normal((1000, 3, 12, 12)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x)
    return Recipe(
        model=folder / "m.onnx", name="m", version="1.0.0", data=folder / "rows.npz",
        task="classification", max_drop="20pt",
    )  # fmt: skip


@pytest.fixture(scope="module")
def subject(recipe, tmp_path_factory):
    return load_subject(recipe, tmp_path_factory.mktemp("subject"))


def open_panel(recipe, subject, folder, *, jobs=2, clock=None):
    return Panel(recipe, subject, folder, jobs=jobs, clock=clock or Clock())


def judged(recipe, subject, folder, **options):
    """By name of the plan: digest of the model and figures, or why there is none."""
    with open_panel(recipe, subject, folder, **options) as panel:
        found = panel.look(PLANS)
        made = [item for item in found.values() if not isinstance(item, Refused)]
        return {
            plan.name: item if isinstance(item, Refused) else (item.digest, item.figures)
            for plan, item in {**found, **panel.judge(made)}.items()
        }


def test_the_number_of_jobs_decides_nothing(recipe, subject, tmp_path):
    one = judged(recipe, subject, tmp_path / "one", jobs=1)
    many = judged(recipe, subject, tmp_path / "many", jobs=4)
    assert one == many
    assert list(one) == [plan.name for plan in PLANS]
    assert one["int4-weights"] == Refused("")
    assert one["int8-static"][1].loss.n == subject.exam.n


def test_after_the_deadline_only_float_is_judged(recipe, subject, tmp_path):
    with open_panel(recipe, subject, tmp_path) as panel:
        panel.until = -1.0
        assert panel.expired
        assert list(panel.look(PLANS)) == [FP32]


def test_a_deadline_in_the_middle_leaves_out_what_is_not_done(recipe, subject, tmp_path):
    with open_panel(recipe, subject, tmp_path, jobs=1, clock=Clock(1.0)) as panel:
        panel.until = 3.5
        looked = panel.look((FP32, STATIC, DYNAMIC))
        assert list(looked) == [FP32, STATIC]
        assert looked[FP32].whole
        assert not looked[STATIC].whole
        assert list(panel.judge(list(looked.values()))) == [FP32]


def test_a_candidate_that_cannot_be_proven_is_not_judged_on_all_rows(recipe, subject, tmp_path):
    strict = dataclasses.replace(recipe, max_drop="0.1pt")
    with open_panel(strict, subject, tmp_path) as panel:
        rough = panel.look((STATIC,))[STATIC]
        lossy = dataclasses.replace(rough, figures=dataclasses.replace(rough.figures, losses=9))
        (found,) = panel.judge([lossy]).values()
        assert not found.whole


def test_whatever_ends_a_search_no_thread_stays(recipe, subject, tmp_path):
    panel = open_panel(recipe, subject, tmp_path)
    with pytest.raises(KeyboardInterrupt), panel:
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="shutdown"):
        panel.look((STATIC,))


def test_a_thread_that_is_being_started_is_waited_for(monkeypatch):
    ended = threading.Event()
    thread = threading.Thread(target=ended.set)
    monkeypatch.setattr(panels.time, "sleep", lambda _: thread.start())
    panels._join(thread)
    assert ended.is_set()


def test_a_thread_that_never_begins_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(panels.time, "sleep", lambda _: None)
    panels._join(threading.Thread())


def test_layers_are_ranked_once(recipe, subject, tmp_path):
    with open_panel(recipe, subject, tmp_path) as panel:
        layers = panel.ranked(STATIC)
        assert panel.ranked(STATIC) is layers
    assert {layer.operator for layer in layers} == {"Conv", "Gemm"}
    assert len(layers) == 2
