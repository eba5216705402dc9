"""Bad input on every surface of the whole loop: a clear error, and the model keeps serving."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from bundle_samples import STRANGER
from world_bundles import MODEL, ROW, model_files
from world_device import PROBATION
from world_loop import DEVICE, Loop
from world_process import run_to_end
from world_registry import Registry
from world_waiting import eventually

from edgepack_contract.messages import Ref, SlotDesired
from edgepack_contract.sealing import seal
from edgepack_contract.states import Phase
from edgepack_contract.topics import Kind

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("bad-input")]

INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture(scope="module")
def loop(tmp_path_factory) -> Iterator[Loop]:
    loop = Loop(tmp_path_factory.mktemp("loop"))
    yield loop
    loop.close()


@pytest.fixture(autouse=True)
def unharmed(loop) -> Iterator[None]:
    """Whatever a test does: 1.0.0 answers before and after, and nothing half-written stays."""
    assert loop.device.version() == "1.0.0"
    pid, bundles, files = loop.device.process.process.pid, listed(loop), loop.fleet_files()
    yield
    assert loop.device.version() == "1.0.0"
    assert loop.device.process.process.pid == pid
    loop.device.wait_tidy()
    assert listed(loop) == bundles
    assert loop.fleet_files() == files
    assert files[1] == []
    assert loop.api("/healthz").status == 200


def listed(loop):
    return [(one["version"], one["digest"]) for one in loop.api("/api/v1/bundles").json["items"]]


# bundles


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def altered(raw: bytes) -> bytes:
    """One bit of one weight."""
    graph = model_files("2.0.0")["model.onnx"]
    at = raw.index(graph) + graph.index(b"J\x30") + 2
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.fixture(scope="module")
def bad_bundles(loop):
    """Files by what is wrong with them."""
    good = loop.bundle("2.0.0").read_bytes()
    made = {
        "cut": cut(good),
        "altered": altered(good),
        "other": (b"PK\x03\x04" + b"a zip").ljust(2048, b"\0"),
        "unsigned": loop.bundle("2.0.0", signer=None).read_bytes(),
        "foreign": loop.bundle("2.0.0", signer=STRANGER).read_bytes(),
    }
    for name, raw in made.items():
        (loop.folder / f"{name}.bad").write_bytes(raw)
    return loop.folder


BAD_BUNDLES = [
    ("cut", 422, "bad-archive", ["reach beyond the end: truncated?"]),
    ("altered", 422, "wrong-digest", ["model.onnx", "sha256:"]),
    ("other", 422, "bad-archive", ["is this a bundle at all?"]),
    ("unsigned", 403, "unsigned", ["'edgepack keys init'", "'edgepack sign'"]),
    ("foreign", 403, "unknown-publisher", ["sign it with a trusted key", "the owner add"]),
]


@pytest.mark.parametrize(
    ("name", "status", "code", "words"), BAD_BUNDLES, ids=[row[0] for row in BAD_BUNDLES]
)
def test_a_bad_bundle_is_verified_by_nobody_and_pushed_nowhere(
    loop, bad_bundles, name, status, code, words
):
    path = bad_bundles / f"{name}.bad"
    verified = loop.try_cli("verify", path, *loop.trust)
    assert (verified.returncode, verified.stdout) == (6, "")
    assert verified.stderr.startswith("error: ")
    pushed = loop.try_cli("bundle", "push", path)
    assert (pushed.returncode, pushed.stdout) == (3, "")
    assert pushed.stderr.startswith("error: the fleet refused: ")
    assert all(said.stderr.strip().isprintable() for said in (verified, pushed))
    answer = loop.api("/api/v1/bundles", "PUT", path.read_bytes())
    assert (answer.status, answer.json["code"]) == (status, code)
    for one in words:
        assert one in answer.json["detail"]
        assert one in pushed.stderr


def test_a_fleet_that_signs_cannot_make_a_device_run_a_strangers_bundle(loop, bad_bundles):
    """The fleet's key is real, the bundle is whole, and its publisher is nobody the owner named."""
    device, before = loop.device, loop.told()
    with Registry() as registry:
        source = registry.add(MODEL, bad_bundles / "foreign.bad")
        digest = registry.digest(MODEL)
        ref = Ref(name=MODEL, digest=digest, sources=[source])
        slots = {MODEL: SlotDesired(active=ref, probation=PROBATION)}
        device.forget()
        generation = before["generation_desired"] + 1
        document = device.signed(device.document(slots, generation=generation))
        device.send(device.topic(Kind.DESIRED), document)
        said = device.hear_reported(lambda said: said.slots[MODEL].phase is Phase.REJECTED)
    slot = said.slots[MODEL]
    assert (slot.code, slot.wanted) == ("unknown-publisher", digest)
    assert (slot.version, slot.running) == ("1.0.0", before["slots"][MODEL]["running"])
    assert device.version() == "1.0.0"
    # the fleet notices that somebody spoke in its name, and says again what it wants
    last = device.hear_reported(lambda said: said.slots[MODEL].phase is Phase.SUCCEEDED)
    assert last.generation > generation
    assert last.slots[MODEL].wanted == slot.running
    eventually(lambda: loop.told()["generation_seen"] == last.generation, "the fleet knows")


# requests


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (f"/v1/models/{MODEL}:predict", {"instances": [[1.0, 2.0]]}, 400,
         ["input 'x'", "expected shape [n, 4] of float32", "given [1, 2]"]),
        (INFER, {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]},
         400, ["input 'x'", "expected shape [n, 4] of float32", "given [1, 3]"]),
        (INFER, {"inputs": [{"name": "y", "shape": [1, 4], "datatype": "FP32", "data": ROW}]}, 400,
         ["input 'y' is not one of the model's: x"]),
        (INFER, {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "INT64", "data": ROW}]}, 400,
         ["'x'", "FP32", "INT64"]),
        (f"/v1/models/{MODEL}:predict", {"instances": [["a", 1, 2, 3]]}, 400,
         ["input 'x'", "expected float32 values"]),
        (f"/v1/models/{MODEL}:predict", {"rows": []}, 400, ['{"instances": [row, ...]}']),
        (f"/v1/models/{MODEL}:predict", b'{"instances": [[1, 2, 3, 4]', 400, ["instances"]),
        (f"/v1/models/{MODEL}:predict", b"\xff\xfe", 400, ["instances"]),
        (f"/v1/models/{MODEL}:predict", b'{"instances": [[NaN, 1, 2, 3]]}', 400, ["instances"]),
        (f"/v1/models/{MODEL}:predict", {"instances": [[None, 1, 2, 3]]}, 400,
         ["input 'x'", "1 of 4 values are null, NaN or infinite"]),
        (f"/v1/models/{MODEL}:predict", {"instances": [[1e39, 1, 2, 3]]}, 400,
         ["input 'x'", "1 of 4 values are null, NaN or infinite"]),
        ("/v1/models/other:predict", {"instances": [ROW]}, 404,
         ["there is no model 'other'", f"this device has: {MODEL}"]),
        (f"/v2/models/{MODEL}/versions/9.9.9/infer", {}, 404, ["9.9.9", "1.0.0 is serving"]),
        ("/v3/nothing", {}, 404, ["there is nothing at /v3/nothing"]),
        (f"/v1/models/{MODEL}:predict", b"[" * 100_000, 400, []),
    ],
    ids=["v1 shape", "v2 shape", "name", "datatype", "text", "key", "cut", "bytes", "NaN", "null",
         "too large", "model", "version", "path", "deep"],
)  # fmt: skip
def test_a_bad_request_is_told_what_is_wrong(loop, path, body, status, words):
    answer = loop.device.predict(body, path)
    assert answer.status == status
    assert set(answer.json) == {"error"}
    for one in words:
        assert one in answer.json["error"]


# messages to the fleet


def sealed(device, kind, body, name=None, key=None):
    topic = device.topic(kind, name)
    return topic, seal(json.dumps(body).encode(), topic=topic, key=key or device.mac_key)


def genuine(device, kind, name=None):
    """A message that the device really sent."""
    topic = device.topic(kind, name)
    return topic, device.hear_raw(topic)


MESSAGES = {
    "malformed": ("no-mac", lambda pi: (pi.topic(Kind.REPORTED), b"garbage")),
    "empty object": ("malformed-document", lambda pi: sealed(pi, Kind.REPORTED, {"session": 1})),
    "forged": ("bad-mac", lambda pi: sealed(pi, Kind.STATE, {"session": 1}, key=bytes(32))),
    "replayed": ("repeated", lambda pi: genuine(pi, Kind.HEALTH)),
    "window replayed": ("window-repeated", lambda pi: genuine(pi, Kind.TELEMETRY, MODEL)),
    "moved": ("bad-mac", lambda pi: (pi.topic(Kind.STATE), genuine(pi, Kind.HEALTH)[1])),
    "altered": ("bad-mac", lambda pi: swap(*genuine(pi, Kind.HEALTH))),
    "in another's name": ("unknown-device", lambda pi: ("edgepack/v1/default/pi-9/state", b"{}")),
    "bad topic": ("bad-topic", lambda pi: ("edgepack/v1/default/PI_9/state", b"{}")),
    "oversized": ("too-large", lambda pi: (pi.topic(Kind.HEALTH), b"{" + b"x" * 300_000)),
}


def swap(topic, payload):
    assert b'"spool_items"' in payload
    return topic, payload.replace(b'"sequence":', b'"sequence":9')


@pytest.mark.parametrize("name", MESSAGES)
def test_a_bad_message_is_counted_by_its_reason_and_changes_nothing(loop, name):
    outcome, make = MESSAGES[name]
    device, before = loop.device, loop.told()
    if "replayed" in name:
        device.predict()
    counted = loop.count(outcome)
    device.send(*make(device))
    eventually(lambda: loop.count(outcome) > counted, f"{outcome} is counted")
    after = loop.told()
    for field in ("presence", "session", "slots", "generation_seen", "refused"):
        assert after.get(field) == before.get(field)
    # the device is heard as before
    heard = loop.count("health")
    eventually(lambda: loop.count("health") > heard, "the device's own messages")


# messages to the device


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("unknown-key", lambda pi, seen: pi.signed(pi.document({}, generation=99), STRANGER)),
        ("malformed-document", lambda pi, seen: b"garbage"),
        ("wrong-device",
         lambda pi, seen: pi.signed(pi.document({}, generation=99, device="pi-9"))),
        ("old-generation", lambda pi, seen: pi.signed(pi.document({}, generation=seen - 1))),
        ("too-large", lambda pi, seen: b"x" * 300_000),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bad_desired_document_is_refused_and_the_fleet_is_told(loop, code, make):
    device, seen = loop.device, loop.told()["generation_seen"]
    device.forget()
    device.send(device.topic(Kind.DESIRED), make(device, seen))
    said = device.hear_reported(lambda said: (said.refused or "").startswith(f"{code}: "))
    assert said.generation == seen
    assert said.slots[MODEL].phase is Phase.SUCCEEDED
    eventually(lambda: loop.told()["refused"] == said.refused, "the fleet knows of the refusal")
    assert f"It refused what it was told: {said.refused}" in loop.cli("device", "why", DEVICE)


# configurations


@pytest.mark.parametrize(
    ("command", "name", "old", "new", "words"),
    [
        (["run"], "device.toml", "[serve]", "[serve]\nprot = 1", ["unknown field `prot`"]),
        (["run"], "device.toml", 'host = "127.0.0.1"', 'host = "0.0.0.0"',
         ["serve.tls_certificate: predictions on 0.0.0.0 would travel in the clear"]),
        (["fleet", "serve"], "fleet.toml", "[http]", "[http]\nprot = 1", ["unknown field `prot`"]),
        (["fleet", "serve"], "fleet.toml", "[http]", '[http]\nhost = "0.0.0.0"',
         ["http.host: tokens, logins and bundles would travel in the clear on 0.0.0.0"]),
    ],
    ids=["device key", "device host", "fleet key", "fleet host"],
)  # fmt: skip
def test_a_bad_configuration_starts_nothing(loop, tmp_path, command, name, old, new, words):
    folder = loop.folder if name == "fleet.toml" else loop.folder / DEVICE
    path = tmp_path / name
    text = (folder / name).read_text().replace('"keys/', f'"{loop.folder}/keys/')
    path.write_text(text.replace(old, new, 1))
    ended = loop.try_cli(*command, "--config", path)
    assert (ended.returncode, ended.stdout) == (78, "")
    for one in words:
        assert one in ended.stderr
    if "key" in words[0] or "field" in words[0]:
        assert str(path) in ended.stderr
        assert "Known keys: " in ended.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_bad_variable_of_the_fleet_starts_nothing(loop):
    ended = run_to_end(
        "edgepack_cli", "fleet", "serve", "--config", loop.folder / "fleet.toml",
        EDGEPACK_FLEET_HTTP_PROT="1",
    )  # fmt: skip
    assert ended.returncode == 78
    assert "EDGEPACK_FLEET_HTTP_PROT is not a setting of the fleet service" in ended.stderr


def test_nothing_of_all_this_was_a_crash(loop):
    """Last in the file: neither process ended, and no log has a traceback."""
    for process in (loop.fleet, loop.device.process):
        assert process.process.poll() is None
        assert "Traceback" not in process.said
    assert loop.count("internal") == 0
