from __future__ import annotations

import subprocess
import sys

import pytest

READ_BY_THREADS = """\
import sys, threading, types
import msgspec
from edgepack_contract.message_types import prepare_types

SOURCE = '''
import msgspec
class Inner(msgspec.Struct):
    number: int
    text: str = ""
class Outer(msgspec.Struct):
    many: list[Inner]
    named: dict[str, Inner]
    one: Inner | None = None
'''
RAW = b'{"many": [{"number": 1}], "named": {"a": {"number": 2}}, "one": {"number": 3}}'

def read(barrier, shape):
    barrier.wait()
    msgspec.json.decode(RAW, type=shape)

sys.setswitchinterval(1e-6)
made = []
for place in range(600):
    made.append(types.ModuleType(f"made_{place}"))
    sys.modules[made[-1].__name__] = made[-1]
    exec(SOURCE, vars(made[-1]))
if sys.argv[1] == "prepared":
    assert prepare_types() >= 1200
for module in made:
    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=read, args=(barrier, module.Outer)) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
"""

EVERY_TYPE = """\
import edgepack_runtime.daemon, edgepack_fleet.server
from edgepack_contract.message_types import prepare_types
assert prepare_types() > 150
"""


@pytest.mark.parametrize("arguments", [(READ_BY_THREADS, "prepared"), (EVERY_TYPE,)])
def test_types_that_are_prepared_can_be_read_by_several_threads(arguments):
    """Without that the first one ends by a signal: ``prepared`` is there to be left out."""
    ended = subprocess.run(
        [sys.executable, "-c", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")
