"""The child that loads a foreign graph first: ``python -m ...first_child MODEL BYTES``.

It imports little, since it is started for one run.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np

from edgepack_contract.description import SessionOptions
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.session import Session, Tensor, numpy_dtype, open_session

NO_MEMORY = 9
"""The exit code of a child that has no memory left; 0 says nothing but that it ended."""


def first_run(path: Path) -> int:
    """Load a graph and run it on one made-up row.

    Its own errors are no verdict: the build meets them again, or does not, with real rows.
    """
    try:
        session = open_session(path, SessionOptions(intra_op_threads=1, inter_op_threads=1))
        session.run(made_up(session))
    except ModelError as error:
        return NO_MEMORY if error.code == "out-of-memory" else 0
    return 0


def made_up(session: Session) -> dict[str, Tensor]:
    """One row of ones, or of empty texts, for every input."""
    return {
        info.name: np.full(
            [size if isinstance(size, int) and size > 0 else 1 for size in info.shape],
            "" if info.dtype == "str" else 1,
            dtype=numpy_dtype(info.dtype),
        )
        for info in session.inputs
    }


if __name__ == "__main__":
    _bytes = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (_bytes, _bytes))
    sys.exit(first_run(Path(sys.argv[1])))
