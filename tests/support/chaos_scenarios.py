"""What a device is in the middle of when it is killed, and what must have come of it afterwards.

Everything is real but the fleet: its signed document is handed to the daemon as the MQTT client
would. Bundles come over HTTP from a registry on loopback.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from bundle_samples import PUBLISHER
from world_bundles import MODEL, files_of, model_files, tiny_bundle, tiny_description
from world_device import FLEET, make_home
from world_registry import Registry

from edgepack_contract.instructions import sign_desired
from edgepack_contract.keys import read_private_key
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_contract.messages import Desired, Probation, Ref, SlotDesired
from edgepack_contract.states import Phase

DEVICE = "pi"
GOOD_ROW = [0.5, 1.0, 2.0, 0.25]
BAD_ROW = [-0.5, -1.0, -2.0, -0.25]
PROBATION = Probation(seconds=0.2, max_seconds=5.0, shadow_seconds=0.0)
LONG_PROBATION = Probation(seconds=20.0, max_seconds=30.0, shadow_seconds=0.0)
"""It must not pass before the model had its occasion to misbehave, however slow the machine is."""
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
BAD_VERSION = "6.6.6"
NO_BROKER = 1
"""A port that nobody listens on: the link goes on trying, as on a device without network."""


@dataclass(frozen=True)
class Scenario:
    """One thing that a device does.

    Attributes:
        name: Its name.
        begins: The template of the disk that it begins with.
        wish: The version that the fleet's document wants, None for none.
        before: The versions that may answer when the process has just started again; empty when
            it may have none yet.
        ends: How the slot rests when everything is over, and the version that answers then.
        generation: The number of the fleet's document.
        deadly: Whether the process ends suddenly whenever the wish is on probation.
    """

    name: str
    begins: str
    wish: str
    before: tuple[str, ...]
    ends: tuple[Phase, str]
    generation: int
    deadly: bool = False

    @property
    def misbehaves(self) -> bool:
        """Whether the wish must not pass its probation."""
        return self.ends[0] == Phase.FELL_BACK

    @property
    def may_be_empty(self) -> bool:
        """Whether there may be nothing to serve when the process starts again."""
        return self.begins == "empty"


A, B, C = VERSIONS
SCENARIOS = {
    one.name: one
    for one in (
        Scenario("first-install", "empty", A, (A,), (Phase.SUCCEEDED, A), 1),
        Scenario("install", "runs-a", B, (A, B), (Phase.SUCCEEDED, B), 2),
        Scenario("fallback", "runs-a", BAD_VERSION, (A, BAD_VERSION), (Phase.FELL_BACK, A), 2),
        Scenario("start", "killed-a", A, (A,), (Phase.SUCCEEDED, A), 1),
        Scenario("start-on-trial", "trial-b", B, (A, B), (Phase.SUCCEEDED, B), 2),
        Scenario("crash-loop", "dying-b", B, (A, B), (Phase.FELL_BACK, A), 2, deadly=True),
        Scenario("resume", "half-b", B, (A, B), (Phase.SUCCEEDED, B), 2),
        Scenario("third-install", "runs-b", C, (B, C), (Phase.SUCCEEDED, C), 3),
    )
}


@dataclass(frozen=True)
class Bundle:
    """A bundle that the registry has, and what it answers to :data:`GOOD_ROW`."""

    version: str
    digest: str
    source: str
    answer: tuple[float, ...]


def make_bundles(folder: Path, registry: Registry) -> dict[str, Bundle]:
    """Bundles by version: three that behave, and one that answers NaN to what golden rows lack."""
    found = {}
    for version in (*VERSIONS, BAD_VERSION):
        path = folder / f"{version}.edgepack"
        bad = version == BAD_VERSION
        files = _bad_files() if bad else model_files(version)
        digest = _bad_bundle(path, files) if bad else tiny_bundle(path, version)
        source = registry.add(f"tiny-{version.replace('.', '-')}", path)
        answer = _answer(files["model.onnx"], folder)
        found[version] = Bundle(version, digest, source, answer)
    return found


def make_device(home: Path) -> None:
    """What enrolment leaves on a device."""
    make_home(home, DEVICE, NO_BROKER)


def document(
    home: Path,
    scenario: Scenario,
    bundles: dict[str, Bundle],
    *,
    generation: int,
    release: bool = False,
) -> bytes:
    """The fleet's word, signed: what the slot is to run, tried again if ``release`` says so."""
    bundle = bundles[scenario.wish]
    probation = LONG_PROBATION if scenario.misbehaves else PROBATION
    now = time.time_ns() // 1_000_000
    ref = Ref(name=MODEL, digest=bundle.digest, sources=[bundle.source])
    released = [bundle.digest] if release else []
    made = Desired(
        tenant="default",
        device=DEVICE,
        enrolment=read_private_key(home / "device.key").public.fingerprint,
        epoch=1,
        generation=generation,
        issued=now,
        expires=now + 7 * 86_400_000,
        slots={MODEL: SlotDesired(active=ref, probation=probation, retry_blocked=released)},
    )
    return sign_desired(made, FLEET)


def copy_home(template: Path, home: Path) -> None:
    """A device of its own, as the template is."""
    shutil.copytree(template, home, ignore=shutil.ignore_patterns("*.sock", "daemon.log"))


def _answer(graph: bytes, folder: Path) -> tuple[float, ...]:
    """What onnxruntime alone says to :data:`GOOD_ROW`, without any of the daemon."""
    path = folder / "graph.onnx"
    path.write_bytes(graph)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["p"], {"x": np.array([GOOD_ROW], np.float32)})
    return tuple(map(float, found[0]))


def _bad_files() -> dict[str, bytes]:
    """softmax(log(x) W): right for the positive golden rows, NaN for everything below zero."""
    rng = np.random.default_rng(666)
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    return files_of(weights, rng.uniform(0.5, 2.0, (8, 4)).astype(np.float32), logarithm=True)


def _bad_bundle(path: Path, files: dict[str, bytes]) -> str:
    description = tiny_description(
        BAD_VERSION, operators=["ai.onnx:Gemm", "ai.onnx:Log", "ai.onnx:Softmax"]
    )
    content = BundleContent([VariantContent(description, files)])
    return write_bundle(path, content, signer=PUBLISHER)
