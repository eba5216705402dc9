from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

CODE = """
import gc, sys
import edgepack_runtime.daemon
from edgepack_runtime import __main__, interpreter

seen = []
def run(_, work):
    work.close()
    seen.append(sys.getswitchinterval())
__main__.asyncio.Runner.run = run
sys.argv = ["edgepack run", "--bundle", "none.edgepack"]
before = len(gc.get_objects())
assert __main__.main() == 0
assert abs(seen[0] - interpreter.SWITCH_SECONDS) < 1e-6
assert gc.get_freeze_count() > 0.9 * before > 10_000
assert len(gc.get_objects()) < 0.1 * before
"""


def test_a_daemon_collects_no_garbage_among_what_it_imported():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


READS = """
import resource, socket
from edgepack_runtime import interpreter

interpreter.settle()
here, there = socket.socketpair()
for number in range(1100):
    if number == 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    here.send(b"x" * 400)
    there.recv(256 * 1024)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert faults < 100, faults
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc only")
def test_a_read_from_a_socket_takes_no_new_pages():
    done = subprocess.run(
        [sys.executable, "-c", READS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
