"""The attacks that The Update Framework names, made on bundles, against a device's real way in.

Source of the names: TUF specification 1.0.33, section 1.5.2. The attacker has the registry, the
network and, where a test says so, a fleet key: it is he who says which digest the device should
run. A device that runs 1.0.0 is told to install; it must refuse with the attack's own code, keep
nothing of what came, and go on serving.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundle_forgery import blob, entries_of, put, resigned, resigned_tree, rewritten
from bundle_samples import PUBLISHER, STRANGER, keyring, one_variant
from slot_world import PROBATION, World, bundle
from world_registry import Registry

from edgepack_contract.bundle import BundleFile
from edgepack_contract.canonical import canonical_json
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.instructions import Obeyed
from edgepack_contract.keyring import KeyStatus
from edgepack_contract.layout import write_bundle
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Ref, SlotDesired
from edgepack_contract.oci_layout import INDEX_ENTRY
from edgepack_contract.states import Phase
from edgepack_runtime.errors import TransientSourceError
from edgepack_runtime.sources.opening import Sources
from edgepack_runtime.sources.registry import Manner, RegistrySource
from edgepack_runtime.sources.source import Patience

GOOD = bundle("1.0.0")
NEXT = bundle("1.1.0")
NAME = "digits"


@pytest.fixture
def registry():
    with Registry() as registry:
        yield registry


@pytest.fixture
def device(tmp_path) -> World:
    """A device that runs 1.0.0 and fetches over real HTTP from now on."""
    world = World(tmp_path / "device")
    world.start()
    world.install(GOOD)
    world.agent._parts.installer._open_source = Sources().open
    return world


def tell(device: World, digest: str, *sources: str) -> None:
    """Hand over what the holder of a fleet key signed."""
    device.generation += 1
    ref = Ref(name=NAME, digest=digest, sources=list(sources))
    wish = SlotDesired(active=ref, probation=PROBATION)
    device.agent.wish(wish, Obeyed(epoch=1, generation=device.generation))
    device.settle()


def refusal(device: World, digest: str, *sources: str) -> str:
    """The code of the refusal; whatever it was, the device is as it was before."""
    tell(device, digest, *sources)
    assert device.host.serving == GOOD.digest
    assert device.state.phase in (Phase.REJECTED, Phase.FAILED), device.state
    assert device.state.active.digest == GOOD.digest
    assert not device.store.has(digest)
    return device.state.code


def served(registry: Registry, path: Path) -> tuple[str, str]:
    """Put a forged bundle into the registry; its digest and address."""
    address = registry.add(path.stem, path)
    return registry.digest(path.stem), address


def written(tmp_path: Path, name: str = "forged", **options: Any) -> Path:
    path = tmp_path / f"{name}.edgepack"
    content = options.pop("content", None) or one_variant(version="6.6.6")
    write_bundle(path, content, **{"signer": PUBLISHER} | options)
    return path


def reindexed(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Alter index and variant manifest, and make all digests around them fit; keep the signature.

    The signature's tag names the digest of the index it is for, so the tag is made to fit as well.
    """
    files = entries_of(path)
    layout = json.loads(files[INDEX_ENTRY])
    entry = layout["manifests"][0]
    before = entry["digest"]
    index = json.loads(files.pop(blob(before)))
    manifest = json.loads(files.pop(blob(index["manifests"][0]["digest"])))
    change(index, manifest)
    put(files, index["manifests"][0], canonical_json(manifest))
    put(files, entry, canonical_json(index))
    for other in layout["manifests"]:
        tag = other["annotations"]["org.opencontainers.image.ref.name"]
        fitting = tag.replace(before.removeprefix("sha256:"), entry["digest"][7:])
        other["annotations"]["org.opencontainers.image.ref.name"] = fitting
    files[INDEX_ENTRY] = canonical_json(layout)
    used = {blob(one) for one in _digests(files, layout)}
    kept = {n: raw for n, raw in files.items() if not n.startswith("blobs/") or n in used}
    return rewritten(path, kept)


def _digests(files: dict[str, bytes], document: dict[str, Any]) -> list[str]:
    """Every digest that a layout leads to."""
    found: list[str] = []
    for one in [*document.get("manifests", []), *document.get("layers", [])]:
        found.append(one["digest"])
        raw = files.get(blob(one["digest"]), b"")
        if raw.startswith(b'{"') and b'"mediaType"' in raw:
            found += _digests(files, json.loads(raw))
    if "config" in document:
        found.append(document["config"]["digest"])
    return found


def drop_golden(_index: dict[str, Any], manifest: dict[str, Any]) -> None:
    path = "org.cncf.model.filepath"
    kept = [one for one in manifest["layers"] if "golden" not in one["annotations"][path]]
    assert len(kept) == len(manifest["layers"]) - 1
    manifest["layers"] = kept


def relabel(index: dict[str, Any], _manifest: dict[str, Any]) -> None:
    index["manifests"][0]["platform"]["variant"] = "v9"


# --- arbitrary software ---------------------------------------------------------------------------


def test_arbitrary_software_unsigned(device, registry, tmp_path):
    assert refusal(device, *served(registry, written(tmp_path, signer=None))) == "unsigned"


def test_arbitrary_software_signed_by_a_stranger(device, registry, tmp_path):
    path = written(tmp_path, signer=STRANGER)
    assert refusal(device, *served(registry, path)) == "unknown-publisher"


def test_arbitrary_software_with_a_signature_over_other_bytes(device, registry, tmp_path):
    path = written(tmp_path)
    zeros = f"sha256:{'0' * 64}"
    resigned_tree(path, lambda tree: tree | {"generic/model.onnx": zeros})
    assert refusal(device, *served(registry, path)) == "wrong-files"


def test_arbitrary_software_behind_a_genuine_bundle(device, registry, tmp_path):
    """The registry answers with another model where the genuine one is asked for."""
    path = written(tmp_path)
    digest, address = served(registry, path)
    genuine = registry.find

    def swap(asked: str) -> bytes | None:
        raw = genuine(asked)
        return b"a grapX" if raw == b"a graph" else raw

    registry.find = swap
    assert refusal(device, digest, address) == "wrong-digest"


# --- mix and match --------------------------------------------------------------------------------


def test_mix_and_match_the_signature_of_another_bundle(device, registry, tmp_path):
    other = entries_of(written(tmp_path, "other", content=one_variant(version="2.0.0")))
    genuine = next(raw for raw in other.values() if b"sigstore" in raw and b"dsse" in raw)
    path = written(tmp_path)
    resigned(path, entries_of(path), lambda _: genuine)
    assert refusal(device, *served(registry, path)) == "wrong-bundle"


@pytest.mark.parametrize("change", [drop_golden, relabel], ids=["dropped golden", "platform"])
def test_mix_and_match_within_a_bundle(device, registry, tmp_path, change):
    path = reindexed(written(tmp_path), change)
    assert refusal(device, *served(registry, path)) == "wrong-bundle"


def test_the_alteration_of_these_tests_alone_is_harmless(device, registry, tmp_path):
    path = reindexed(written(tmp_path), lambda *_: None)
    tell(device, *served(registry, path))
    assert device.state.phase is Phase.SUCCEEDED


def test_mix_and_match_a_swapped_variant(device, registry, tmp_path):
    """The manifest of another genuine variant where the index names this one."""
    first, second = written(tmp_path), written(tmp_path, "b", content=one_variant(variant="other"))
    digest, address = served(registry, first)
    served(registry, second)
    genuine, ours = registry.find, index_of(first)["manifests"][0]["digest"]
    theirs = index_of(second)["manifests"][0]["digest"]

    def swap(asked: str) -> bytes | None:
        return genuine(
            asked.replace("forged", "b").replace(ours, theirs) if ours in asked else asked
        )

    registry.find = swap
    assert refusal(device, digest, address) == "wrong-digest"


def index_of(path: Path) -> dict[str, Any]:
    with BundleFile.open(path) as file:
        raw = file.resolve(file.digest)
    found: dict[str, Any] = json.loads(raw or b"{}")
    return found


# --- wrong software -------------------------------------------------------------------------------


def test_wrong_software_another_genuine_bundle(device, registry, tmp_path):
    """Signed by the right publisher, and neither what the slot runs nor what was asked for."""
    path = written(tmp_path, content=one_variant(name="faces"))
    assert refusal(device, *served(registry, path)) == "wrong-bundle"


def test_wrong_software_for_another_machine(device, registry, tmp_path):
    platform = one_variant().variants[0].description.platform
    other = type(platform)(architecture="arm64", variant="v8")
    path = written(tmp_path, content=one_variant(version="6.6.6", platform=other))
    assert refusal(device, *served(registry, path)) == "no-variant"


# --- rollback -------------------------------------------------------------------------------------


def test_rollback_to_a_bundle_below_the_floor(device, registry):
    newer = bundle("2.0.0", security_version=9)
    registry.add("newer", newer.path)
    tell(device, newer.digest, registry.add("newer", newer.path))
    assert device.state.active.digest == newer.digest
    old = bundle("1.5.0", security_version=8)
    tell(device, old.digest, registry.add("old", old.path))
    assert (device.state.phase, device.state.code) == (Phase.REJECTED, "below-floor")
    assert device.host.serving == newer.digest


def test_rollback_to_the_recorded_previous_is_no_attack(device, registry):
    newer = bundle("2.0.0", security_version=9)
    tell(device, newer.digest, registry.add("newer", newer.path))
    tell(device, GOOD.digest, registry.add("good", GOOD.path))
    assert (device.state.phase, device.host.serving) == (Phase.SUCCEEDED, GOOD.digest)


# --- endless data ---------------------------------------------------------------------------------


class Endless(ThreadingHTTPServer):
    """Answers every request for what ``wanted`` matches with bytes that never end."""

    daemon_threads = True

    def __init__(self, registry: Registry, repository: str, wanted: str) -> None:
        super().__init__(("127.0.0.1", 0), _EndlessHandler)
        self.registry, self.repository, self.wanted = registry, repository, wanted
        self.sent = 0
        self.pause: Callable[[], object] = lambda: None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.repository}"

    def handle_error(self, *_: object) -> None:
        """The device hangs up, which is what these tests are about."""


class _EndlessHandler(BaseHTTPRequestHandler):
    server: Endless

    def do_GET(self) -> None:
        if self.server.wanted not in self.path:
            body = self.server.registry.find(self.path) or b""
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" " * 65536)
            self.server.sent += 65536
            self.server.pause()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endless(registry, tmp_path):
    digest, _ = served(registry, NEXT.path)
    servers = []

    def serve(wanted: str) -> Endless:
        server = Endless(registry, NEXT.path.stem, wanted)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server

    yield digest, serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("wanted", "code"),
    [("/manifests/sha256:", "too-large"), ("/blobs/", "wrong-digest")],
    ids=["manifest", "blob"],
)
def test_endless_data(device, endless, wanted, code):
    digest, serve = endless
    server = serve(wanted)
    assert refusal(device, digest, server.address) == code
    assert server.sent < 4 * LIMITS.signature_bytes


# --- slow retrieval -------------------------------------------------------------------------------


def test_slow_retrieval(endless):
    """A byte now and then keeps a connection alive for ever; the total time ends it."""
    digest, serve = endless
    server = serve("/manifests/")
    clock = [0.0]
    server.pause = lambda: clock.__setitem__(0, clock[0] + 40.0)
    patience = Patience(stall_seconds=30.0, least_seconds=60.0, least_rate=1024.0 * 1024)
    manner = Manner(patience=patience, clock=lambda: clock[0])
    source = RegistrySource(server.address, manner=manner)
    with closing(source), pytest.raises((TransientSourceError, MalformedBundleError)) as caught:
        source.resolve(digest)
    assert isinstance(caught.value, TransientSourceError)
    assert "too slow" in str(caught.value)


# --- malicious mirrors ----------------------------------------------------------------------------


def test_malicious_mirrors_do_not_keep_a_device_from_a_good_one(device, registry, tmp_path):
    forged, liar = served(registry, written(tmp_path, "liar", signer=STRANGER))
    honest = registry.find
    registry.find = lambda asked: honest(
        asked.replace(NEXT.digest, forged) if "/liar/" in asked else asked
    )
    tell(device, NEXT.digest, liar, registry.add("good", NEXT.path))
    assert (device.state.phase, device.host.serving) == (Phase.SUCCEEDED, NEXT.digest)


# --- key compromise -------------------------------------------------------------------------------


def test_key_compromise_of_a_publisher(device, registry, tmp_path):
    """The owner revokes the key: nothing it ever signed is installed any more."""
    path = written(tmp_path)
    device.keyring = keyring(status=KeyStatus.REVOKED)
    assert refusal(device, *served(registry, path)) == "revoked-publisher"


def test_key_compromise_of_a_retired_publisher(device, registry, tmp_path):
    """A retired key vouches for the digests that the owner listed, and for nothing newer."""
    listed, forged = served(registry, NEXT.path), served(registry, written(tmp_path))
    device.keyring = keyring(status=KeyStatus.RETIRED, digests=[NEXT.digest])
    assert refusal(device, *forged) == "retired-publisher"
    tell(device, *listed)
    assert device.host.serving == NEXT.digest


def test_key_compromise_limited_by_names(device, registry, tmp_path):
    """A publisher key that was made for other bundles is worth nothing here."""
    device.keyring = keyring(names=["faces-*"])
    assert refusal(device, *served(registry, written(tmp_path))) == "wrong-name"


def test_key_compromise_that_made_one_bad_bundle(device, registry, tmp_path):
    path = written(tmp_path)
    digest, address = served(registry, path)
    device.keyring = msgspec.structs.replace(device.keyring, revoked_digests=[digest])
    assert refusal(device, digest, address) == "revoked-digest"
