"""Builds that end in the middle, as real processes: nothing of them stays."""

import os
import resource
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from tests.packager.models import mlp

COMMAND = [sys.executable, "-m", "edgepack_cli", "build"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model and rows that are quick to build from, and more than the full disk below takes."""
    folder = tmp_path_factory.mktemp("ended")
    onnx.save(mlp(hidden=1600), folder / "m.onnx")
    x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, label=np.arange(600) % 3)
    return folder


@pytest.fixture
def start(inputs, tmp_path):
    """Start a build in a process group of its own, with its own folder for files in between."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()

    def run(*options, file_bytes=None):
        def limit():
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        arguments = [
            inputs / "m.onnx", "--name", "digits", "--version", "1.0.0", "--label", "label",
            "--data", inputs / "rows.npz", "-o", tmp_path / "out" / "digits.edgepack",
            "--lock", tmp_path / "out" / "digits.lock", *options,
        ]  # fmt: skip
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=limit,  # noqa: PLW1509 - the test starts no thread
        )  # fmt: skip

    return run


def nothing_stays(process, tmp_path):
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return [*(tmp_path / "tmp").iterdir(), *(tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize("moment", ["search: ", "describe"])
def test_ctrl_c_leaves_no_file_and_no_process(start, tmp_path, moment):
    with start("--max-memory", "2GiB") as process:
        for line in process.stderr:
            if moment in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert rest.splitlines()[-1] == "interrupted"
    assert nothing_stays(process, tmp_path)


def test_a_full_disk_is_said_and_leaves_nothing(start, tmp_path):
    with start(file_bytes=90_000) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 3
    last = told.splitlines()[-1]
    assert last.startswith("error: there is no room to write ")
    assert "File too large; make some, or point TMPDIR and --output elsewhere" in last
    assert nothing_stays(process, tmp_path)
