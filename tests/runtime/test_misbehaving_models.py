"""Models that pass every check and misbehave only when they answer: a real daemon goes back.

Whatever is asked meanwhile is answered, by the model that was good before at the latest.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from pathlib import Path

import hostile_graphs as hostile
import numpy as np
import pytest
from broker_process import Broker
from bundle_samples import PUBLISHER as SIGNER
from onnx import TensorProto, helper, numpy_helper
from world_bundles import MODEL, ranked_bundle, tiny_bundle, tiny_description
from world_device import FLEET, Device, make_home
from world_registry import Registry

from edgepack_contract.description import Budgets, SessionOptions
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_contract.messages import Event, Probation
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind
from edgepack_runtime.activation.figures import read_tried
from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, run_rows
from edgepack_runtime.inference.session import open_session

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("misbehaving-models")]

MIB = 1024 * 1024
LONG = Probation(seconds=60.0, max_seconds=60.0, shadow_seconds=1.0)
ROWS = 8


def constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def size_of_input():
    """n, the largest of the input: what the graphs below misbehave by."""
    return [
        helper.make_node("Abs", ["x"], ["abs"]),
        helper.make_node("ReduceMax", ["abs"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["n"], to=TensorProto.INT64),
    ]


def answering(extra):
    """p = softmax(x W) + 0 * extra."""
    return [
        helper.make_node("Gemm", ["x", "W"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["soft"], axis=1),
        helper.make_node("Mul", [extra, "zero"], ["nothing"]),
        helper.make_node("Add", ["soft", "nothing"], ["p"]),
    ]


def gives_nan():
    root = [
        helper.make_node("Sub", ["limit", "most"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
    ]
    return [*size_of_input(), *root, *answering("root")], [constant("limit", np.float32(1000))]


def gives_one_answer():
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["same"]),
        helper.make_node("Gemm", ["same", "W"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
    ]
    return nodes, []


def gets_slow():
    loop = hostile.looping(1, [helper.make_node("Add", ["value", "value"], ["next"])]).graph
    loop.node[0].input[:] = ["n", "yes", "zero"]
    loop.node[0].output[:] = ["looped"]
    # nothing doubled any number of times is nothing
    return [*size_of_input(), loop.node[0], *answering("looped")], [constant("yes", True)]


def grows():
    nodes = [
        helper.make_node("Unsqueeze", ["n", "first"], ["one"]),
        helper.make_node("Concat", ["one", "mib"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=0),
    ]
    numbers = [constant("first", np.array([0])), constant("mib", np.array([MIB]))]
    return [*size_of_input(), *nodes, *answering("top")], numbers


def files(nodes, initializers):
    # small: a large input must not leave one class alone, which is one answer to all
    weights = np.random.default_rng(5).normal(scale=1e-4, size=(4, 3)).astype(np.float32)
    made = hostile.model(
        nodes,
        [constant("W", weights), constant("zero", np.float32(0)), *initializers],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        outputs=[helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 3])],
    )
    rows = {"x": np.random.default_rng(6).normal(size=(ROWS, 4)).astype(np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(made.SerializeToString())
        answers = run_rows(open_session(path, SessionOptions()), rows, ROWS)
        return {
            "model.onnx": path.read_bytes(),
            "golden.safetensors": golden_bytes(GoldenRows(rows, answers)),
        }, sorted({f"ai.onnx:{node.op_type}" for node in nodes} | {"ai.onnx:Identity"})


CASES = {
    "1.1.0": (gives_nan, Budgets(), 5000.0, "nonfinite-outputs"),
    "1.2.0": (gives_one_answer, Budgets(), 1.0, "identical-outputs"),
    "1.3.0": (gets_slow, Budgets(latency_ms=0.2), 1500.0, "latency-budget"),
    "1.4.0": (grows, Budgets(memory_bytes=160 * MIB), 64.0, "memory"),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Digest and address by version."""
    folder = tmp_path_factory.mktemp("bundles")
    digests = {"1.0.0": tiny_bundle(folder / "1.0.0", "1.0.0")}
    for version, (make, budgets, _, _) in CASES.items():
        content, operators = files(*make())
        # what is no number is answered as null, so that whoever fails is the model alone
        description = tiny_description(
            version, budgets=budgets, operators=operators, on_nonfinite="count"
        )
        variant = VariantContent(description, content)
        digests[version] = write_bundle(folder / version, BundleContent([variant]), signer=SIGNER)
    digests["1.5.0"] = ranked_bundle(folder / "1.5.0", "1.5.0", wrong=("fast",))
    digests["1.6.0"] = crashing(folder / "1.6.0")
    with Registry() as registry:
        yield {
            version: (digest, registry.add(f"tiny-{version.replace('.', '-')}", folder / version))
            for version, digest in digests.items()
        }


def crashing(path):
    content, _ = files(*gives_one_answer())
    content["model.onnx"] = hostile.deep_tree(20_000).SerializeToString()
    description = tiny_description(
        "1.6.0",
        operators=["ai.onnx.ml:TreeEnsembleRegressor"],
        opsets={"ai.onnx": 17, "ai.onnx.ml": 3},
    )
    return write_bundle(path, BundleContent([VariantContent(description, content)]), signer=SIGNER)


@pytest.fixture(scope="module")
def pi(tmp_path_factory, bundles):
    """A device that runs 1.0.0."""
    broker = Broker()
    home = tmp_path_factory.mktemp("misbehaving") / "pi-1"
    make_home(home, "pi-1", broker.port)
    config = home / "device.toml"
    config.write_text(config.read_text().replace("window_seconds = 0.5", "window_seconds = 1.5"))
    device = Device(home, "pi-1", broker.port, FLEET)
    device.start()
    device.wish(*bundles["1.0.0"])
    device.hear_reported(lambda said: there(said, Phase.SUCCEEDED, bundles["1.0.0"][0]))
    # what it reports and its events come in any order: each is heard by ears of its own
    device.ears = Device(home, "pi-1", broker.port, FLEET)
    yield device
    device.ears.close()
    device.close()
    broker.kill()


def there(said, phase, digest):
    slot = said.slots.get(MODEL)
    return slot and (slot.phase, slot.wanted) == (phase, digest)


class Asking(threading.Thread):
    """Somebody who asks again and again, each time something else; what is not answered counts."""

    def __init__(self, device, size):
        super().__init__()
        self.device, self.size = device, size
        self.ending = threading.Event()
        self.versions = set()
        self.failures = []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.join()

    def run(self):
        for number in itertools.count():
            if self.ending.is_set():
                return
            answer = self.device.predict({"instances": [[self.size, number % 100, 0.5, -0.5]]})
            if answer.status == 200:
                self.versions.add(answer.json["model_version"])
            else:
                self.failures.append(answer)
            self.ending.wait(0.002)


@pytest.mark.parametrize("version", CASES)
def test_what_misbehaves_while_it_answers_is_left_again(pi, bundles, version):
    _, _, size, code = CASES[version]
    digest, source = bundles[version]
    with Asking(pi, size) as asking:
        pi.wish(digest, source, probation=LONG, retain=False)
        said = pi.hear_reported(lambda said: there(said, Phase.FELL_BACK, digest))
    slot = said.slots[MODEL]
    assert (slot.code, slot.running) == (code, bundles["1.0.0"][0])
    assert slot.words
    assert digest in slot.blocked
    assert asking.failures == []
    assert asking.versions == {"1.0.0", version}
    # without it no event goes out after many windows, which a slow machine makes
    pi.acknowledge(said.session)
    event = pi.ears.hear(
        pi.topic(Kind.EVENT, "fallback"), Event, lambda said: said.digest == digest
    )
    assert event.code == code
    # what takes too much memory is left while its first request still runs
    assert event.evidence["requests"] > 0 or code == "memory"
    assert pi.version() == "1.0.0"


def test_a_model_that_ends_its_process_never_comes_near_the_one_that_serves(pi, bundles):
    digest, source = bundles["1.6.0"]
    with Asking(pi, 1.0) as asking:
        pi.wish(digest, source, probation=LONG, retain=False)
        said = pi.hear_reported(lambda said: there(said, Phase.FAILED, digest))
    slot = said.slots[MODEL]
    assert (slot.code, slot.running) == ("probe-crashed", bundles["1.0.0"][0])
    assert slot.words == "onnxruntime died of SIGSEGV"
    assert (asking.failures, asking.versions) == ([], {"1.0.0"})


def test_the_next_variant_serves_when_the_best_does_badly(pi, bundles):
    digest, source = bundles["1.5.0"]
    with Asking(pi, 1.0) as asking:
        pi.wish(digest, source, retain=False)
        said = pi.hear_reported(lambda said: there(said, Phase.SUCCEEDED, digest))
    slot = said.slots[MODEL]
    assert (slot.running, slot.code) == (digest, "")
    assert slot.words.startswith("fast: output 'p': ")
    assert slot.words.endswith("; alt1 was chosen")
    folder = pi.home / "state" / "slots" / MODEL / "store" / digest.removeprefix("sha256:")
    fast, chosen = read_tried(folder / "model")
    assert [fast.result.code, chosen.variant, chosen.result.ok] == ["golden-mismatch", "alt1", True]
    assert 0 < chosen.result.model_bytes < chosen.result.peak_bytes
    assert asking.failures == []
