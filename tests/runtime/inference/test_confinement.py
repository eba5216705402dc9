"""What the probe's child takes from itself, in processes that really end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hostile_graphs as hostile
import msgspec
import pytest
from world_waiting import eventually

from edgepack_runtime.inference.golden import GoldenRows, golden_bytes, load_golden
from edgepack_runtime.inference.probe import probe_model
from edgepack_runtime.inference.variant import read_description


@pytest.fixture(scope="module")
def endless(make_variant):
    """A variant whose model never answers."""
    folder = make_variant("endless")
    graph = hostile.endless()
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    rows = load_golden(folder / "golden.safetensors").inputs
    (folder / "golden.safetensors").write_bytes(golden_bytes(GoldenRows(rows, {"y": rows["x"]})))
    description = read_description(folder)
    output = msgspec.structs.replace(
        description.outputs[1], name="y", shape=["batch", 4], labels=None, kind="values"
    )
    operators = ["ai.onnx:Add", "ai.onnx:Identity", "ai.onnx:Loop"]
    changed = msgspec.structs.replace(description, outputs=[output], operators=operators)
    (folder / "edgepack.json").write_bytes(changed.to_bytes())
    return folder


def children(parent):
    """The processes that try a model out for another."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"edgepack_runtime.inference.child" in command:
            found.append(int(entry.name))
    return found


def is_confined(pid):
    return Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def the_child_of(parent):
    """Its process, once it has confined itself."""
    found = []

    def there():
        found[:] = [pid for pid in children(parent) if is_confined(pid)]
        return found

    eventually(there, "a child that tries a model out")
    return found[0]


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGKILL, "probe-memory", "out of memory"),
        (signal.SIGABRT, "probe-crashed", "SIGABRT"),
        (signal.SIGXCPU, "probe-cpu", "processor time"),
    ],
    ids=["by the kernel", "by itself", "by its limit"],
)
def test_however_the_child_ends_there_are_words_for_it(endless, number, code, words):
    results = []
    trying = threading.Thread(target=lambda: results.append(probe_model(endless, timeout_s=60)))
    trying.start()
    os.kill(the_child_of(os.getpid()), number)
    trying.join()
    assert results[0].code == code
    assert words in results[0].words


def test_a_child_does_not_outlive_who_started_it(endless):
    code = (
        "import sys; from pathlib import Path\n"
        "from edgepack_runtime.inference.probe import probe_model\n"
        "probe_model(Path(sys.argv[1]), timeout_s=60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(endless)]) as parent:
        child = the_child_of(parent.pid)
        assert os.getsid(child) == child != os.getsid(parent.pid)
        parent.kill()
    eventually(lambda: not is_running(child), "the end of the child")


def test_a_child_whose_parent_is_gone_tries_nothing(endless):
    command = [sys.executable, "-m", "edgepack_runtime.inference.child", str(endless)]
    numbers = ["0", "1", "60", "1", "1"]
    out = subprocess.run([*command, *numbers], capture_output=True, check=False, text=True)
    assert (out.returncode, out.stdout) == (1, "")
    assert "OrphanedError: nobody waits for this process" in out.stderr


def test_what_is_printed_is_no_verdict():
    code = (
        "import os; from edgepack_runtime.inference.confinement import keep_output_apart\n"
        "kept = keep_output_apart(); print('noise', flush=True); os.write(1, b'more');"
        "os.write(kept, b'verdict')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert (out.stdout, out.stderr) == ("verdict", "noise\nmore")


def test_the_environment_of_the_daemon_is_not_the_models(endless, monkeypatch):
    monkeypatch.setenv("EDGEPACK_SECRET", "hunter2")
    trying = threading.Thread(target=lambda: probe_model(endless, timeout_s=60))
    trying.start()
    child = the_child_of(os.getpid())
    found = Path(f"/proc/{child}/environ").read_bytes()
    where = str(Path(f"/proc/{child}/cwd").readlink())
    os.kill(child, signal.SIGKILL)
    trying.join()
    assert b"hunter2" not in found
    assert b"ORT_DISABLE_TELEMETRY=1" in found
    assert where.endswith(" (deleted)")
