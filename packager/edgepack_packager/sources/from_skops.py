"""``.skops`` files: scikit-learn models that load without running code that came with them."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from edgepack_contract.digest import sha256_digest
from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.files import read_bounded
from edgepack_packager.sources.from_sklearn import convert_estimator
from edgepack_packager.sources.model import LoadContext, SourceModel


@contextmanager
def _without_torch() -> Iterator[None]:
    """Let no import find PyTorch: it takes seconds and 200 MB, and scikit-learn does without."""
    hidden = {} if "torch" in sys.modules else {"torch": None}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _without_torch():
    # it imports every package of scikit-learn, of which one wraps PyTorch where there is one
    import skops.io

SAFE_TYPES = frozenset({
    "collections.OrderedDict",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
})  # fmt: skip
"""Types that hold numbers only, but are not public estimators: of scikit-learn itself, a dictionary
with an order, and the types of arrays, which skops reads out of an empty array. Not the boosters of
XGBoost and LightGBM: their bytes go to readers in C++ that a crooked file crashes."""


def load_skops(path: Path, context: LoadContext) -> SourceModel:
    """Load a ``.skops`` file and convert it.

    Raises:
        ModelSourceError: Unreadable, not a fitted model, or with types that are not known safe.
        ConversionError: A part of it has no ONNX form.
    """
    raw = read_bounded(path)
    model = _load(path, raw, context.trusted_types)
    source = convert_estimator(model, context, digest=sha256_digest(raw), passes=("load-skops",))
    return replace(source, tools={**source.tools, "skops": importlib.metadata.version("skops")})


def _load(path: Path, raw: bytes, trusted_types: Sequence[str]) -> Any:
    trusted = SAFE_TYPES | set(trusted_types)
    try:
        unknown = sorted(set(skops.io.get_untrusted_types(data=raw)) - trusted)
        if unknown:
            raise ModelSourceError(
                f"{path.name} wants to load {', '.join(unknown)}; loading a type may run its code. "
                "If you trust the file and these types, name each with --trust-type",
                code="untrusted-types",
            )
        return skops.io.loads(raw, trusted=sorted(trusted))
    except (BadZipFile, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        # what skops raises for a file that is not one of its own, or is of a newer version
        raise ModelSourceError(f"{path.name} is not a readable .skops file: {error}") from error
