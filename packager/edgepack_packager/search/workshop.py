"""Makes the graphs of candidates out of one cleaned graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import Lock

import onnx

from edgepack_packager.data.rows import Feeds
from edgepack_packager.graphs.running import save_model, take_rows
from edgepack_packager.graphs.structure import is_quantized
from edgepack_packager.quantize.making import Prepared, make, prepare, ranked, remarks
from edgepack_packager.quantize.operators import DYNAMIC_TYPES, classical_operators, quantizable
from edgepack_packager.quantize.plan import Plan
from edgepack_packager.quantize.sensitivity import LayerError
from edgepack_packager.quantize.share import float_weight_bytes, quantized_share
from edgepack_packager.search.strategy import Material

RANKED_ROWS = 64
PRODUCTS = ("Gemm", "MatMul")

LEAST_WEIGHT_BYTES = 4096
"""Below this, storing weights in fewer bits saves less than the nodes that unpack them add."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A candidate's files, and which share of the bytes of the weights is not in float."""

    folder: Path
    quantized_share: float


class Workshop:
    """Makes candidates, one at a time whoever asks; measures ranges at most once.

    The libraries that quantize keep to one interpreter lock and share global state, so that two at
    once would gain nothing. What runs meanwhile is the judging of the candidates made before.
    """

    def __init__(self, model: onnx.ModelProto, calibration: Feeds | None, folder: Path) -> None:
        self._model, self._calibration, self._folder = model, calibration, folder
        self._numbers = count()
        self._lock, self._measuring = Lock(), Lock()

    @cached_property
    def _prepared(self) -> Prepared:
        return prepare(self._model, self._calibration)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the model keeps which candidates away, in words for the user."""
        return (*_classical_words(self._model), *remarks(self._prepared))

    def material(self, *, judged: bool) -> Material:
        """What the model offers; without rows to judge on nothing is prepared.

        A graph that computes in integers already, or has no form in integers, is left as it is.
        """
        if not judged or is_quantized(self._model) or classical_operators(self._model):
            return Material(judged=False)
        return Material(
            judged=True,
            static_nodes=len(self._prepared.nodes),
            dynamic=bool(quantizable(self._model, (*DYNAMIC_TYPES, *PRODUCTS))),
            convolutions=bool(quantizable(self._model, ("Conv",))),
            products=bool(quantizable(self._model, PRODUCTS)),
            grown=self._prepared.grown,
            stored=float_weight_bytes(self._model) > LEAST_WEIGHT_BYTES,
        )

    def make(self, plan: Plan, check: Callable[[], None]) -> Draft | None:
        """Write the graph of a candidate; None when the model has no such form.

        Args:
            plan: What decides it.
            check: Called before it is made; raises when there is no time for it.

        Raises:
            QuantizerError: The quantizer does not cope with this graph.
            ModelError: onnxruntime refuses the graph that it makes.
        """
        if plan.precision == "int8-static":
            # takes longest, and no library that quantizes is in it
            with self._measuring:
                check()
                if self._prepared.nodes:
                    self._prepared.ranges(plan)
        with self._lock:
            check()
            model = make(self._prepared, plan)
            if model is None:
                return None
            folder = self._folder / f"candidate-{next(self._numbers)}"
            save_model(model, folder)
            return Draft(folder, quantized_share(self._model, model))

    def ranked(self, plan: Plan) -> tuple[LayerError, ...]:
        """The nodes of static int8, the one that does most harm under ``plan`` first."""
        if self._calibration is None:
            return ()
        rows = take_rows(self._calibration, slice(0, RANKED_ROWS))
        with self._lock:
            place = self._folder / f"alone-{next(self._numbers)}"
            return ranked(self._prepared, plan, rows, place)


def _classical_words(model: onnx.ModelProto) -> tuple[str, ...]:
    found = classical_operators(model)
    if any(name.startswith("TreeEnsemble") for name in found):
        return ("tree ensembles have no int8 form; compression on the way makes them small",)
    if found:
        return (f"{', '.join(found)} has no int8 form; the model is packed in float",)
    return ()
