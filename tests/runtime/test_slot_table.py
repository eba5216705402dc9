"""A daemon with several models: in slots of their own, and as a candidate beside another."""

from __future__ import annotations

import errno
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from broker_process import Broker
from world_bundles import MODEL, ROW, tiny_bundle
from world_device import FLEET, Device, keyring_file, make_home
from world_process import ask
from world_registry import Registry
from world_waiting import eventually

from edgepack_contract.messages import (
    Candidate,
    CandidateMode,
    Event,
    EventKind,
    Probation,
    Ref,
    SlotDesired,
)
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind, keyring_topic
from edgepack_contract.window import Window
from edgepack_runtime.errors import DeviceError
from edgepack_runtime.slot_table import _listed

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("device-slots")]

SHADOW, SPLIT = CandidateMode.SHADOW, CandidateMode.SPLIT
KEYS = 40
QUICK = Probation(seconds=0.2, max_seconds=5.0, shadow_seconds=0.3)
SECOND = """
[slots.second]
threads = 2
batching = { rows = 16, delay_ms = 5.0 }
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Versions by name: digest and address."""
    folder = tmp_path_factory.mktemp("bundles")
    with Registry() as registry:
        found = {}
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            path = folder / f"{version}.edgepack"
            digest = tiny_bundle(path, version)
            found[version] = (digest, registry.add(f"tiny-{version.replace('.', '-')}", path))
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory, bundles):
    broker, folder = Broker(), tmp_path_factory.mktemp("candidates")
    make_home(folder / "pi-1", "pi-1", broker.port)
    with (folder / "pi-1" / "device.toml").open("a") as config:
        config.write(SECOND)
    device = Device(folder / "pi-1", "pi-1", broker.port, FLEET)
    device.start()
    yield device
    device.close()
    broker.kill()


@pytest.fixture
def device(shared, bundles):
    """A device that runs 1.0.0, without a candidate."""
    # a report from before an earlier test's candidate would do as well
    shared.forget()
    tell(shared, bundles["1.0.0"])
    shared.hear_reported(lambda said: settled(said, bundles["1.0.0"], None))
    return shared


def tell(device, active, candidate=None, mode=SHADOW, share=1.0, **more):
    """Tell a device what its slot is to run; bundles are digest and address."""
    device.generation += 1
    beside = None
    if candidate is not None:
        beside = Candidate(ref=ref_of(candidate, **more), mode=mode, share=share)
    slot = SlotDesired(active=ref_of(active), candidate=beside, probation=QUICK)
    document = device.document({MODEL: slot})
    device.send(device.topic(Kind.DESIRED), device.signed(document), retain=True)


def ref_of(bundle, name=MODEL):
    digest, source = bundle
    return Ref(name=name, digest=digest, sources=[source])


def settled(said, active, candidate):
    """Whether a report tells of these two at rest."""
    slot = said.slots.get(MODEL)
    if slot is None or (slot.phase, slot.running) != (Phase.SUCCEEDED, active[0]):
        return False
    beside = slot.candidate
    if candidate is None:
        return beside is None
    return beside is not None and (beside.phase, beside.running) == (Phase.SUCCEEDED, candidate[0])


def with_candidate(device, bundles, **how):
    tell(device, bundles["1.0.0"], bundles["1.1.0"], **how)
    device.hear_reported(lambda said: settled(said, bundles["1.0.0"], bundles["1.1.0"]))


def versions_by_key(device):
    """Who answers each of many callers."""
    path = f"/v1/models/{MODEL}:predict"
    answers = {
        number: device.predict({"instances": [[float(number), *ROW[1:]]]}, path)
        for number in range(KEYS)
    }
    assert {answer.status for answer in answers.values()} == {200}
    return {number: answer.json["model_version"] for number, answer in answers.items()}


def infer(device, version):
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}
    path = f"/v2/models/{MODEL}/versions/{version}/infer"
    return device.predict({"inputs": [tensor]}, path)


def hear_window(device, role):
    """Wait for a window with requests in it, and acknowledge it as a fleet would."""
    window = device.hear(
        device.topic(Kind.TELEMETRY, MODEL), Window, lambda said: said.role == role and said.n
    )
    device.acknowledge(window.session, window.last)
    return window


def test_the_end_of_a_candidates_install_is_an_event_of_a_candidate(device, bundles):
    tell(device, bundles["1.0.0"], bundles["1.1.0"])
    event = device.hear(
        device.topic(Kind.EVENT, EventKind.INSTALLED.value),
        Event,
        lambda said: said.digest == bundles["1.1.0"][0],
    )
    assert event.evidence["candidate"] is True
    device.acknowledge(event.session, event.sequence)


def test_a_shadow_sees_what_the_active_model_answers(device, bundles):
    with_candidate(device, bundles)
    assert set(versions_by_key(device).values()) == {"1.0.0"}
    window = hear_window(device, "shadow")
    assert window.bundle == bundles["1.1.0"][0]
    assert window.pairs.against == bundles["1.0.0"][0]
    assert 0 < window.pairs.n == window.n
    assert infer(device, "1.1.0").json["model_version"] == "1.1.0"
    assert infer(device, "1.0.0").json["model_version"] == "1.0.0"
    assert infer(device, "9.9.9").status == 404


def test_a_split_answers_the_same_share_before_and_after_a_kill(device, bundles):
    with_candidate(device, bundles, mode=SPLIT, share=0.5)
    before = versions_by_key(device)
    assert set(before.values()) == {"1.0.0", "1.1.0"}
    device.process.end(signal.SIGKILL)
    device.start()
    device.hear_reported(lambda said: settled(said, bundles["1.0.0"], bundles["1.1.0"]))
    assert versions_by_key(device) == before
    hear_window(device, "split")
    tell(device, bundles["1.0.0"], bundles["1.1.0"], mode=SPLIT, share=0.0)
    device.hear_reported(lambda said: said.slots[MODEL].candidate.share == 0.0)
    assert set(versions_by_key(device).values()) == {"1.0.0"}


def test_a_candidate_becomes_the_active_model(device, bundles):
    with_candidate(device, bundles)
    tell(device, bundles["1.1.0"])
    device.hear_reported(lambda said: settled(said, bundles["1.1.0"], None))
    assert device.version() == "1.1.0"
    folder = device.home / "state" / "slots" / MODEL / "candidate"
    eventually(lambda: not list((folder / "store").iterdir()), "an empty store of the candidate")


def test_another_candidate_takes_the_place_of_the_first(device, bundles):
    with_candidate(device, bundles)
    tell(device, bundles["1.0.0"], bundles["1.2.0"])
    device.hear_reported(lambda said: settled(said, bundles["1.0.0"], bundles["1.2.0"]))
    assert infer(device, "1.1.0").status == 404


def test_a_candidate_that_cannot_be_had_leaves_the_active_model_alone(device, bundles):
    missing = ("sha256:" + "0" * 64, bundles["1.1.0"][1])
    tell(device, bundles["1.0.0"], missing)
    said = device.hear_reported(
        lambda said: (
            said.slots[MODEL].candidate
            and said.slots[MODEL].candidate.phase in (Phase.FAILED, Phase.REJECTED)
        )
    )
    beside = said.slots[MODEL].candidate
    assert (beside.running, beside.wanted) == (None, missing[0])
    assert beside.code
    assert said.slots[MODEL].phase is Phase.SUCCEEDED
    assert device.version() == "1.0.0"


def test_a_split_that_cannot_be_had_leaves_its_share_to_the_active_model(device, bundles):
    with_candidate(device, bundles, mode=SPLIT, share=0.5)
    assert set(versions_by_key(device).values()) == {"1.0.0", "1.1.0"}
    missing = ("sha256:" + "1" * 64, bundles["1.1.0"][1])
    tell(device, bundles["1.0.0"], missing, mode=SPLIT, share=0.75)
    failed = (missing[0], Phase.FAILED, None)
    device.hear_reported(
        lambda said: (
            (beside := said.slots[MODEL].candidate)
            and (beside.wanted, beside.phase, beside.running) == failed
        )
    )
    assert set(versions_by_key(device).values()) == {"1.0.0"}


@pytest.mark.parametrize(
    ("candidate", "more", "code"),
    [("1.0.0", {}, "same-bundle"), ("1.1.0", {"name": "other"}, "wrong-name")],
)
def test_a_candidate_that_must_not_be_is_refused(device, bundles, candidate, more, code):
    tell(device, bundles["1.0.0"], bundles[candidate], **more)
    said = device.hear_reported(lambda said: said.slots[MODEL].candidate)
    beside = said.slots[MODEL].candidate
    assert (beside.phase, beside.code, beside.running) == (Phase.FAILED, code, None)


def test_two_slots_serve_two_models_each_in_its_way(device, bundles):
    device.generation += 1
    slots = {
        name: SlotDesired(active=ref_of(bundles[version]), probation=QUICK)
        for name, version in ((MODEL, "1.0.0"), ("second", "1.2.0"))
    }
    device.send(device.topic(Kind.DESIRED), device.signed(device.document(slots)), retain=True)
    device.hear_reported(
        lambda said: "second" in said.slots and said.slots["second"].phase is Phase.SUCCEEDED
    )
    path = "/v1/models/second:predict"
    with ThreadPoolExecutor(8) as clients:
        bodies = [{"instances": [[float(number), *ROW[1:]]]} for number in range(40)]
        together = list(clients.map(lambda body: device.predict(body, path), bodies))
        alone = [device.predict(body) for body in bodies]
    assert {answer.json["model_version"] for answer in together} == {"1.2.0"}
    assert {answer.json["model_version"] for answer in alone} == {"1.0.0"}
    sizes = {
        name: [entry["batch_size"] for entry in batches(device, name)] for name in (MODEL, "second")
    }
    assert sizes[MODEL] == []
    assert max(sizes["second"]) > 1
    index = ask(device.home / "serve.sock", "POST", "/v2/repository/index").json
    assert {entry["name"]: entry["version"] for entry in index} == {
        MODEL: "1.0.0",
        "second": "1.2.0",
    }


def test_settings_of_a_slot_count_after_a_hangup_from_the_next_model_on(device, bundles):
    path = device.home / "device.toml"
    before = path.read_text()
    path.write_text(before + f"[slots.{MODEL}]\nbatching = {{ rows = 4, delay_ms = 1.0 }}\n")
    try:
        device.process.process.send_signal(signal.SIGHUP)
        device.process.wait_said(f"slots.{MODEL}.batching.rows")
        assert device.predict().status == 200
        assert batches(device, MODEL) == []
        tell(device, bundles["1.2.0"])
        device.hear_reported(lambda said: settled(said, bundles["1.2.0"], None))
        assert device.predict().status == 200
        assert batches(device, MODEL) != []
    finally:
        path.write_text(before)
        device.process.process.send_signal(signal.SIGHUP)


def batches(device, name):
    stats = ask(device.home / "serve.sock", "GET", f"/v2/models/{name}/stats").json
    return stats["model_stats"][0]["batch_stats"]


def test_a_candidate_that_the_owner_revokes_is_dropped(device, bundles):
    with_candidate(device, bundles)
    keyring = keyring_file(2, revoked_digests=[bundles["1.1.0"][0]])
    device.send(keyring_topic("default"), keyring, retain=True)
    said = device.hear_reported(
        lambda said: said.slots[MODEL].candidate and said.slots[MODEL].candidate.code
    )
    beside = said.slots[MODEL].candidate
    assert (beside.phase, beside.code) == (Phase.FAILED, "revoked-digest")
    eventually(lambda: infer(device, "1.1.0").status == 404, "no candidate")
    assert device.version() == "1.0.0"


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_slots_that_cannot_be_listed_are_the_disks_fault_and_end_no_daemon(
    tmp_path, monkeypatch, number
):
    def failing(_folder):
        raise OSError(number, "not now")

    monkeypatch.setattr(Path, "iterdir", failing)
    # Daemon looks for slots at every window, and goes on after an error of the device
    with pytest.raises(DeviceError, match="cannot list"):
        _listed(tmp_path)
