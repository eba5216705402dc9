"""Variants for Arm, built on this machine and run by aarch64's own onnxruntime under qemu-user."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.packager.models import cnn

from edgepack_contract.bundle import BundleFile, verify_bundle_file
from edgepack_packager import Recipe, build

PROJECT = Path(__file__).parents[2]
PROCESSORS = {"rpi4": "cortex-a72", "rpi5": "cortex-a76"}
"""The cores of the boards, which qemu imitates: the first without dot products, the second with."""

pytestmark = pytest.mark.foreign("apt-get", "dpkg-deb")


@pytest.fixture(scope="module")
def aarch64() -> Path:
    """The command that runs the device's code on aarch64; its folder is kept between runs."""
    pins = hashlib.sha256((PROJECT / "requirements/runtime.txt").read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "edgepack" / f"aarch64-{pins}"
    subprocess.run([PROJECT / "tests/support/aarch64-root", folder], check=True, timeout=300)
    return folder / "python"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm")
    onnx.save(cnn(256), folder / "cnn.onnx")
    images = np.random.default_rng(0).standard_normal((400, 3, 12, 12)).astype(np.float32)
    np.savez(folder / "rows.npz", x=images)
    build(
        Recipe(
            model=folder / "cnn.onnx",
            name="cnn",
            version="1.0.0",
            output=folder / "cnn.edgepack",
            data=folder / "rows.npz",
            targets=tuple(PROCESSORS),
            alternatives=1,
            max_drop="10pt",
        )
    )
    return folder / "cnn.edgepack"


def selftest(aarch64: Path, bundle: Path, processor: str, *which: str) -> tuple[int, dict]:
    done = subprocess.run(
        [aarch64, "-m", "edgepack_cli", "selftest", bundle, *which, "--json"],
        env={**os.environ, "QEMU_CPU": processor},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "{}") or {"stderr": done.stderr}


@pytest.mark.parametrize(("board", "processor"), PROCESSORS.items())
def test_every_candidate_for_a_board_answers_there_as_where_it_was_built(
    aarch64, bundle, board, processor
):
    with BundleFile.open(bundle) as file:
        opened = verify_bundle_file(file, keyring=None)
        built = {item.name for item in opened.variants if item.name.startswith(board)}
    code, said = selftest(aarch64, bundle, processor, "--all-variants")
    assert code == 0, said
    found = {item["variant"]: item for item in said["variants"]}
    assert len(built) == 2
    assert built <= found.keys()
    assert {found[name]["precision"] for name in built} == {"fp32", "int8-static"}
    assert all(item["ok"] and item["rows"] > 0 for item in found.values())


def test_a_candidate_with_dot_products_is_refused_where_there_are_none(aarch64, bundle):
    code, said = selftest(aarch64, bundle, PROCESSORS["rpi4"], "--variant", "rpi5")
    assert code == 7
    assert "has no asimddp" in said["stderr"]
