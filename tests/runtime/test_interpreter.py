from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, sys
import edgepack_runtime.daemon
from edgepack_runtime import __main__, interpreter

seen = []
__main__.asyncio.run = lambda work: (work.close(), seen.append(sys.getswitchinterval()))
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
