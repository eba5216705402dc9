"""Alter every byte of a small model, and load what may be loaded: ``FOLDER SEED``.

It is run in a process of its own, which onnxruntime may end.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

from edgepack_contract.description import SessionOptions
from edgepack_runtime.inference.errors import ModelLoadError, UnfitModelError
from edgepack_runtime.inference.prescan import prescan
from edgepack_runtime.inference.session import open_session
from edgepack_runtime.inference.variant import read_description


def outcome(folder: Path) -> str:
    """What becomes of the model in a folder."""
    try:
        prescan(folder, read_description(folder))
        open_session(folder / "model.onnx", SessionOptions())
    except UnfitModelError:
        return "refused"
    except ModelLoadError:
        return "failed"
    return "loaded"


def main(folder: Path, seed: int) -> None:
    """Print how many alterations came to which end."""
    rng, path = random.Random(seed), folder / "model.onnx"
    genuine = path.read_bytes()
    found: Counter[str] = Counter()
    for at, byte in enumerate(genuine):
        for other in (byte ^ 1 << rng.randrange(8), rng.randrange(256)):
            path.write_bytes(genuine[:at] + bytes([other]) + genuine[at + 1 :])
            found[outcome(folder)] += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
