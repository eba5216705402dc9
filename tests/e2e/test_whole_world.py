"""What needs fleet, broker and device: a bad network, ranked variants, a second model, a kill."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from bad_way import bad_way
from large_bundles import large_bundle
from world_bundles import MODEL, ROW, ranked_bundle
from world_device import PROBATION
from world_loop import DEVICE, Loop
from world_process import ask
from world_waiting import SECONDS, eventually

from edgepack_contract.messages import Candidate, CandidateMode, Ref, SlotDesired
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("whole-world")]

PREDICT = f"/v1/models/{MODEL}:predict"
SIZE = 300_000
"""Of a bundle: enough to be cut while it comes at :data:`RATE` bytes a second."""

RATE = 400_000
RARELY = {"EDGEPACK_FLEET_TIMINGS_TICK": "3600", "EDGEPACK_FLEET_TIMINGS_LEASE": "7200"}
"""A service that looks rarely whether devices run what it wants."""


@pytest.fixture(scope="module")
def ways():
    with bad_way() as to_broker, bad_way() as to_fleet:
        yield to_broker, to_fleet


@pytest.fixture(scope="module")
def loop(tmp_path_factory, ways) -> Iterator[Loop]:
    loop = Loop(tmp_path_factory.mktemp("loop"), to_broker=ways[0], to_fleet=ways[1])
    yield loop
    loop.close()


@contextmanager
def asking(loop) -> Iterator[Counter[str]]:
    """Somebody who asks the device all the time, and how many answers each version gave."""
    versions: Counter[str] = Counter()
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.wait(0.05):
            answer = ask(loop.device.home / "serve.sock", "POST", PREDICT, {"instances": [ROW]})
            versions[answer.json.get("model_version", f"status {answer.status}")] += 1

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield versions
    finally:
        stop.set()
        thread.join(SECONDS)


def answered(loop) -> Counter[str]:
    """How many requests of each version the fleet knows of."""
    digests = {one["digest"]: one["version"] for one in loop.api("/api/v1/bundles").json["items"]}
    items = loop.api("/api/v1/stats").json["items"]
    return Counter({digests[one["digest"]]: one["n"] for one in items if one["n"]})


def query(loop, text, *values):
    """What the service has in its database."""
    uri = f"file:{loop.folder / 'fleet' / 'fleet.db'}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as database:
        return database.execute(text, values).fetchall()


def installs(loop, digest):
    """How installs of a bundle ended: by the device's own history, and by what the fleet heard."""
    config = loop.device.home / "device.toml"
    said = json.loads(loop.cli("local", "history", "--json", "--config", config))
    records = [one["record"]["outcome"] for one in said if one["record"]["digest"] == digest]
    return records, query(loop, "select kind from device_events where digest = ?", digest)


def test_a_rollout_over_a_bad_network_ends_and_nothing_is_lost_or_done_twice(loop, ways):
    to_broker, to_fleet = ways
    device = loop.device.process
    path = loop.folder / "large.edgepack"
    digest = large_bundle(path, "1.1.0", size=SIZE, signer=loop.key("publisher"))
    loop.push_file(path)
    before, known = to_fleet.passed, answered(loop)
    with asking(loop) as versions:
        to_fleet.slow(RATE)
        rollout = loop.start_rollout("1.1.0", probation=1.0)
        # the wish has come, and some of the bundle
        eventually(lambda: to_fleet.passed > before + 20_000, lambda: device.said)
        to_broker.cut()
        to_fleet.reset()
        device.wait_said("download waits after try")
        eventually(lambda: to_fleet.passed > before + 60_000, lambda: device.said)
        to_fleet.cut()
        device.wait_said("download waits after try", times=2)
        to_fleet.mend()
        to_broker.stall()
        # nobody has heard of it yet
        eventually(lambda: versions["1.1.0"], lambda: device.said)
        assert loop.told()["slots"][MODEL]["version"] == "1.0.0"
        to_broker.cut_after(700)
        to_broker.mend()
        eventually(lambda: to_broker.is_cut, "a cut while it reports")
        to_broker.mend()
        loop.watch(rollout)
    assert set(versions) == {"1.0.0", "1.1.0"}
    assert installs(loop, digest) == (["installed"], [("installed",)])
    eventually(lambda: answered(loop) == known + versions, lambda: (answered(loop), versions))
    assert query(loop, "select count(*) from gaps") == [(0,)]
    assert loop.told()["slots"][MODEL]["running"] == digest
    eventually(lambda: loop.told()["presence"] == "online", loop.told)


def test_the_device_chooses_among_the_variants_of_a_bundle_that_is_rolled_out(loop):
    path = loop.folder / "ranked.edgepack"
    digest = ranked_bundle(path, "1.2.0", wrong=("fast",), signer=loop.key("publisher"))
    loop.push_file(path)
    loop.roll_out("1.2.0")
    ((evidence,),) = query(loop, "select evidence from device_events where digest = ?", digest)
    tried = [(one["variant"], one["code"]) for one in json.loads(evidence)["alternatives"]]
    assert tried == [("fast", "golden-mismatch"), ("alt1", "")]
    assert "alt1 was chosen" in loop.cli("device", "why", DEVICE)
    ((birth,),) = query(loop, "select birth from devices where id = ?", DEVICE)
    assert json.loads(birth)["slots"][MODEL]["variant"] == "alt1"


def ref_of(loop, version) -> Ref:
    """A bundle in the fleet's store, by the way to it."""
    bundles = {one["version"]: one["digest"] for one in loop.api("/api/v1/bundles").json["items"]}
    url = loop.fleet_url
    return Ref(name=MODEL, digest=bundles[version], sources=[f"{url}/{MODEL}"])


def tell(loop, active, candidate, mode, share):
    """Have the device told by the fleet's key to run two bundles of the fleet's store."""
    device = loop.device
    beside = Candidate(ref=ref_of(loop, candidate), mode=mode, share=share)
    slot = SlotDesired(active=ref_of(loop, active), candidate=beside, probation=PROBATION)
    document = device.document({MODEL: slot}, generation=loop.told()["generation_seen"] + 1)
    device.send(device.topic(Kind.DESIRED), device.signed(document), retain=True)

    def runs() -> bool:
        said = loop.told()["slots"][MODEL]["candidate"]
        return said is not None and (said["phase"], said["running"], said["mode"]) == (
            "succeeded", beside.ref.digest, mode.value,
        )  # fmt: skip

    eventually(runs, lambda: (loop.told(), device.process.said))


def seen(loop, digest, role) -> int:
    """How many requests a bundle has had in a role, by its windows as gates count them."""
    found = query(loop, "select block from windows where digest = ?", digest)
    blocks = [json.loads(raw) for (raw,) in found]
    return sum(one["n"] for one in blocks if one["role"] == role)


def test_a_candidate_of_a_fleet_is_installed_shadows_splits_and_goes(loop):
    # the service does all but to say again what it wants itself, which has no candidates yet
    loop.replace_fleet(**RARELY)
    active, beside = "1.2.0", "1.1.0"
    digest = ref_of(loop, beside).digest
    tell(loop, active, beside, CandidateMode.SHADOW, 1.0)
    known = answered(loop)
    with asking(loop) as versions:
        eventually(lambda: seen(loop, digest, "shadow"), lambda: loop.device.process.said)
    assert set(versions) == {active}
    # who answered is counted, and a shadow answers nobody
    eventually(lambda: answered(loop) == known + versions, lambda: (answered(loop), versions))
    assert seen(loop, digest, "shadow") <= versions[active]
    tell(loop, active, beside, CandidateMode.SPLIT, 0.5)
    callers = Counter(
        loop.device.predict({"instances": [[float(number), *ROW[1:]]]}).json["model_version"]
        for number in range(40)
    )
    assert set(callers) == {active, beside}
    known += versions
    eventually(lambda: answered(loop) == known + callers, lambda: (answered(loop), callers))
    assert seen(loop, digest, "split") == callers[beside]
    # a service that looks again takes away what it did not ask for
    loop.replace_fleet()
    eventually(lambda: loop.told()["slots"][MODEL]["candidate"] is None, loop.told)
    assert loop.device.version() == active


def test_a_device_that_is_killed_in_probation_ends_its_rollout_as_if_it_had_not_been(loop):
    loop.push("1.3.0")
    device = loop.device
    device.forget()
    rollout = loop.start_rollout("1.3.0", probation=3.0)
    device.hear_reported(lambda said: said.slots[MODEL].phase is Phase.PROBATION)
    device.process.end(signal.SIGKILL)
    device.start()
    loop.watch(rollout)
    assert device.version() == "1.3.0"
    slot = loop.told()["slots"][MODEL]
    assert (slot["phase"], slot["version"], slot["blocked"]) == ("succeeded", "1.3.0", [])
    device.wait_tidy()
    assert loop.fleet_files()[1] == []
