"""Pickles: refused unread, or loaded in a child that can neither harm nor tell anything."""

import os
import pickle
import socket
import subprocess
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from edgepack_contract.limits import GIB, MIB
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources import LoadContext, enclosure, load_source, sandbox
from edgepack_packager.sources.sandbox import Child, ChildLimits

SECRET = "correct horse battery staple"

SAY = """
import os, struct
for descriptor in range(3, 32):
    try:
        os.write(descriptor, struct.pack('>Q', {length}) + {words})
    except OSError:
        pass
import time; time.sleep(1e6)
"""
"""Writes into every pipe there is, to forge a reply."""


class Hostile:
    """Its pickle runs ``code``."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return (exec, (self.code,))


@pytest.fixture
def hostile(tmp_path):
    def write(code, name="model.pkl"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Hostile(code)))
        return path

    return write


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    limits = ChildLimits(memory_bytes=3 * GIB, reply_bytes=64 * MIB, seconds=30.0)
    monkeypatch.setattr(ChildLimits, "of_this_machine", classmethod(lambda cls: limits))


def load(path, trust="sandboxed", **more):
    folder = path.parent / "between"
    folder.mkdir(exist_ok=True)
    return load_source(path, LoadContext(folder, trust_pickle=trust, **more))


def refusal(path, trust="sandboxed"):
    with pytest.raises(ModelSourceError) as caught:
        load(path, trust)
    return caught.value


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.mark.parametrize(
    "name", ["m.pkl", "m.pickle", "m.joblib", "m.dill", "m.pt", "m.pth", "m.pt2"]
)
def test_without_the_flag_not_one_byte_is_unpickled(hostile, tmp_path, name):
    path = hostile(f"open({str(tmp_path / 'mark')!r}, 'w')", name)
    error = refusal(path, "no")
    assert error.code == "pickle"
    assert "--trust-pickle" in str(error)
    assert not (tmp_path / "mark").exists()


def test_it_writes_no_file(hostile, tmp_path):
    mark = tmp_path / "mark"
    error = refusal(hostile(f"open({str(mark)!r}, 'w')"))
    assert error.code == "load-failed"
    assert "model.pkl cannot be loaded" in str(error)
    assert not mark.exists()


def test_it_reaches_no_network(hostile, listener):
    port = listener.getsockname()[1]
    error = refusal(hostile(f"import socket; socket.create_connection(('127.0.0.1', {port}))"))
    assert error.code == "load-failed"
    assert "unreachable" in str(error)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
    ],
)
def test_it_starts_no_process(hostile, code):
    error = refusal(hostile(code))
    assert error.code == "load-failed"
    assert "not permitted" in str(error)


def test_it_reads_no_secret(hostile, tmp_path, monkeypatch):
    secret = tmp_path / "publisher.key"
    secret.write_text(SECRET)
    monkeypatch.setenv("EDGEPACK_PASSPHRASE", SECRET)
    monkeypatch.chdir(tmp_path)
    others = "[open(f'/proc/{n}/environ').read() for n in os.listdir('/proc') if n.isdecimal()]"
    for code in (
        f"raise ValueError(open({str(secret)!r}).read())",
        "import os; raise ValueError(str(dict(os.environ)))",
        f"import os; raise ValueError(str({others}))",
    ):
        error = refusal(hostile(code))
        assert error.code == "load-failed"
        assert SECRET not in str(error)


def test_it_sees_no_process_but_its_own(hostile):
    code = "import os; raise ValueError(str(sorted(n for n in os.listdir('/proc') if n < 'a')))"
    assert "ValueError: ['1']" in str(refusal(hostile(code)))


def test_it_may_not_take_for_ever(hostile, monkeypatch):
    limits = ChildLimits(memory_bytes=GIB, seconds=2.0)
    monkeypatch.setattr(ChildLimits, "of_this_machine", classmethod(lambda cls: limits))
    error = refusal(hostile("import time; time.sleep(1e6)"))
    assert error.code == "source-timeout"
    assert "the process that loads model.pkl was not done within 2 s" in str(error)


def test_it_may_not_take_all_memory(hostile):
    error = refusal(hostile("import numpy; numpy.zeros(1 << 33, 'u1')"))
    assert error.code == "source-memory"
    assert str(error) == "model.pkl needs more memory than its process may have"


def test_it_may_end_without_harm(hostile):
    error = refusal(hostile("import os; os._exit(3)"))
    assert error.code == "source-died"
    assert "model.pkl ended with status 3 before it answered" in str(error)


def test_a_huge_answer_is_not_read(hostile):
    error = refusal(hostile(SAY.format(length=1 << 60, words=b"")))
    assert error.code == "source-too-large"
    assert "announced 1152921504606846976 bytes" in str(error)


@pytest.mark.parametrize(("length", "words"), [(4, b"junk"), (0, b"")])
def test_a_forged_answer_is_refused(hostile, length, words):
    error = refusal(hostile(SAY.format(length=length, words=words)))
    assert error.code == "source-garbled"


def test_unsandboxed_it_does_what_it_likes(hostile, tmp_path):
    error = refusal(hostile(f"open({str(tmp_path / 'mark')!r}, 'w')"), "unsandboxed")
    assert error.code == "no-model-inside"
    assert (tmp_path / "mark").exists()


def test_unsandboxed_it_still_has_no_secrets_of_the_environment(hostile, monkeypatch):
    monkeypatch.setenv("EDGEPACK_PASSPHRASE", SECRET)
    code = "import os; raise ValueError(str(dict(os.environ)))"
    assert SECRET not in str(refusal(hostile(code), "unsandboxed"))


def test_where_nothing_can_be_shut_in_the_user_must_say_so(hostile, tmp_path, monkeypatch):
    source = Path(enclosure.__file__).read_text()
    other = tmp_path / "enclosure.py"
    other.write_text(source.replace("ARCHITECTURES = {", "ARCHITECTURES = {} and {"))
    monkeypatch.setattr(enclosure, "__file__", str(other))
    path = hostile(f"open({str(tmp_path / 'mark')!r}, 'w')")
    error = refusal(path)
    assert error.code == "no-sandbox"
    assert "--trust-pickle=unsandboxed" in str(error)
    assert not (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def fitted():
    x = np.random.default_rng(0).standard_normal((60, 3))
    return LogisticRegression().fit(x, np.where(x[:, 0] > 0, "up", "down")), x


@pytest.mark.parametrize("name", ["model.joblib", "model.pkl"])
def test_a_fitted_estimator_answers_from_its_child(tmp_path, fitted, name):
    model, x = fitted
    if name.endswith("joblib"):
        joblib.dump(model, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(model))
    source = load(tmp_path / name)
    assert source.classes == ("down", "up")
    assert source.passes[0] == "load-pickle"
    # more rows than are asked at once
    rows = np.resize(x, (600, 3))
    assert source.answer({"input": rows})["label"].tolist() == model.predict(rows).tolist()
    with pytest.raises(ValueError, match="KeyError"):
        source.answer({"other": rows})


def test_a_class_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "ours_alone.py").write_text(
        "from sklearn.linear_model import LinearRegression\n"
        "def make():\n    return LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])\n"
    )
    # by its name alone: the module is not imported here
    (tmp_path / "model.pkl").write_bytes(b"cours_alone\nmake\n(tR.")
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "model.pkl").task == "regression"
    (tmp_path / "ours_alone.py").unlink()
    error = refusal(tmp_path / "model.pkl")
    assert error.code == "missing-module"
    assert "'ours_alone'" in str(error)


@pytest.mark.parametrize(
    ("value", "words"),
    [({"w": np.zeros(2)}, "state_dict"), ([1, 2], "builtins.list")],
)
def test_what_is_no_model_is_said_plainly(tmp_path, value, words):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value))
    error = refusal(tmp_path / "m.pkl")
    assert error.code == "no-model-inside"
    assert words in str(error)


def test_broken_pickles_are_refused(tmp_path):
    (tmp_path / "m.pkl").write_bytes(b"\x80\x05half")
    assert refusal(tmp_path / "m.pkl").code == "load-failed"


def test_a_child_ends_with_its_lifeline(tmp_path):
    child = Child(
        "nothing",
        visible=[],
        folder=tmp_path,
        enclosed=True,
        limits=ChildLimits(memory_bytes=GIB, seconds=30.0),
    )
    process = child._process
    assert process.poll() is None
    child.end()
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_child_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(sandbox.subprocess, "Popen", refuse)
    (tmp_path / "m.pkl").write_bytes(b"")
    assert "no child process can be started" in str(refusal(tmp_path / "m.pkl"))
    assert subprocess.Popen is refuse
