"""Models with a state: carried through sequences by every model that is judged."""

from functools import partial

import numpy as np
import onnx
import pytest
from tests.packager.models import recurrent

from edgepack_contract.bundle import BundleFile
from edgepack_contract.description import GOLDEN_PATH, REFERENCE_PATH
from edgepack_contract.layout import unpack
from edgepack_contract.reference import parse_reference
from edgepack_packager import Recipe, RecipeError, build
from edgepack_packager.graphs.running import open_folder, run_rows, save_model
from edgepack_packager.graphs.steps import run_steps
from edgepack_packager.recipe import InputRule
from edgepack_packager.subject import load_subject
from edgepack_runtime.inference.coerce import check_feeds
from edgepack_runtime.inference.golden import check_golden
from edgepack_runtime.inference.variant import read_description

STATE = {"state": InputRule(role="state", source="next")}


@pytest.fixture
def make(tmp_path):
    """Load a subject out of a model and rows of sequences that are mixed up in the file."""

    def load(model, *, inputs=None, sequences=True, **changes):
        onnx.save(model, tmp_path / "m.onnx")
        random = np.random.default_rng(0)
        names = np.repeat([f"s{number}" for number in range(6)], [4, 9, 1, 7, 9, 5])
        random.shuffle(names)
        x = random.standard_normal((len(names), 3)).astype(np.float32)
        np.savez(tmp_path / "rows.npz", x=x, sequence=names)
        recipe = Recipe(
            model=tmp_path / "m.onnx",
            name="m",
            version="1.0.0",
            evaluation=tmp_path / "rows.npz",
            calibration=tmp_path / "rows.npz" if not sequences else None,
            sequence_column="sequence" if sequences else None,
            inputs=STATE if inputs is None else inputs,
            **changes,
        )
        folder = tmp_path / "work"
        folder.mkdir()
        return load_subject(recipe, folder), x, names

    return load


def by_hand(model, x, names):
    """The answers and the states before each row, sequence by sequence, in numpy."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    states, answers, before = {}, [], []
    for row, name in zip(x, names, strict=True):
        old = states.get(name, np.zeros(4, np.float32))
        before.append(old)
        states[name] = np.tanh(old @ weights["u"] + row @ weights["w"])
        answers.append(states[name] @ weights["v"])
    return np.array(answers), np.array(before)


@pytest.mark.parametrize("rows_last", [False, True])
@pytest.mark.parametrize("batch", ["n", 1])
def test_states_are_carried_through_each_sequence(make, rows_last, batch):
    model = recurrent(rows_last=rows_last, batch=batch)
    subject, x, names = make(model)
    wanted, before = by_hand(model, x, names)
    np.testing.assert_allclose(subject.exam.source, wanted, rtol=1e-5, atol=1e-6)
    filled = subject.exam.feeds["state"]
    assert filled.shape == ((35, 2, 4) if rows_last else (35, 4))
    np.testing.assert_allclose(filled[:, 0] if rows_last else filled, before, atol=1e-6)
    assert subject.exam.units.tolist() == [
        sorted(set(names), key=list(names).index).index(n) for n in names
    ]
    spec = next(spec for spec in subject.inputs if spec.name == "state")
    assert (spec.role, spec.source) == ("state", "next")
    assert subject.decisions.answer == "y"
    assert subject.decisions.carried == ("next",)
    assert any("first dimension" in text for text in subject.warnings) == rows_last


def test_a_candidate_carries_its_own_state(make, tmp_path):
    subject, _, _ = make(recurrent())
    worse = onnx.ModelProto()
    worse.CopyFrom(subject.model)
    u = next(t for t in worse.graph.initializer if t.name == "u")
    u.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(u) * np.float32(1.1), "u"))
    save_model(worse, tmp_path / "worse")
    run = partial(run_rows, open_folder(tmp_path / "worse"))
    exam = subject.exam
    own = run_steps(run, exam.feeds, exam.steps)["y"] - exam.source
    helped = run(exam.feeds)["y"] - exam.source
    assert np.abs(own).mean() > 1.05 * np.abs(helped).mean()


def test_without_a_column_all_rows_are_one_sequence(make):
    subject, x, _ = make(recurrent(), sequences=False)
    wanted, before = by_hand(recurrent(), x, ["one"] * len(x))
    np.testing.assert_allclose(subject.exam.source, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(subject.calibration["state"], before, atol=1e-6)
    assert any("one sequence" in text for text in subject.warnings)


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"memory": InputRule(role="state", source="next")}, "no-input", "it has x, state"),
        ({"state": InputRule(role="state", source="h")}, "no-output", "it has y, next"),
        ({"state": InputRule(role="state", source="y")}, "state-shape", r"\[n, 1\]"),
        ({**STATE, "x": InputRule(role="state", source="y")}, "state-shape", "x"),
    ],
)
def test_rules_that_do_not_fit_are_refused(make, inputs, code, words):
    with pytest.raises(RecipeError, match=words) as caught:
        make(recurrent(), inputs=inputs)
    assert caught.value.code == code


def test_a_state_that_grows_is_refused(make):
    model = recurrent()
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "past"
    with pytest.raises(RecipeError, match="grows") as caught:
        make(model)
    assert caught.value.code == "state-open"


def test_a_bundle_with_a_state_is_served_step_by_step(make, tmp_path):
    """A client sends the state and gets the next one back; zeros begin a sequence."""
    make(recurrent(rows_last=True))
    recipe = Recipe(
        model=tmp_path / "m.onnx", name="m", version="1.0.0", data=tmp_path / "rows.npz",
        sequence_column="sequence", inputs=STATE, output=tmp_path / "m.edgepack",
    )  # fmt: skip
    build(recipe)
    with BundleFile.open(tmp_path / "m.edgepack") as file:
        unpack(file, tmp_path / "unpacked")
    (folder,) = (path for path in (tmp_path / "unpacked").iterdir() if path.is_dir())
    description = read_description(folder)
    session = open_folder(folder)
    assert check_golden(session, folder / GOLDEN_PATH, description.golden).ok
    state = next(spec for spec in description.inputs if spec.role == "state")
    assert (state.shape, state.source) == (["batch", 2, 4], "next")
    reference = parse_reference((folder / REFERENCE_PATH).read_bytes())
    assert {feature.tensor for feature in reference.inputs} == {"x"}
    assert reference.ordered
    rows = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    wanted, _ = by_hand(recurrent(), rows, ["one"] * 4)
    held = np.zeros((1, 2, 4), np.float32)
    for row, answer in zip(rows, wanted, strict=True):
        feeds = {"x": row[None], "state": held}
        check_feeds(description, feeds)
        outputs = session.run(feeds)
        held = outputs["next"]
        np.testing.assert_allclose(outputs["y"][0], answer, atol=0.05)
