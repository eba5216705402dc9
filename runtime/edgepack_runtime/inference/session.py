"""onnxruntime, wrapped: the only module of edgepack that imports it.

A model is always loaded by path: loading from bytes costs more than twice the memory, and weights
beside the graph are then mapped instead of copied.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgepack_contract.description import SessionOptions
from edgepack_runtime.inference.errors import ModelLoadError, ModelRunError

# since 1.29 onnxruntime sends usage data to its vendor unless this is set before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

Tensor = npt.NDArray[Any]
Optimisation = Literal["off", "basic", "extended", "all"]

MOST_BOUND_BYTES = 16 << 10
"""What is larger is not worth copying to save the few microseconds that binding saves."""

_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
    **{f"tensor({name})": name for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}

_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

# onnxruntime's exceptions share no base class below Exception, so they are listed; the built-in
# ones are what its Python layer raises for missing feeds, and for a bad allocation
_ORT_ERRORS: tuple[type[BaseException], ...] = (
    ort_state.EPFail,
    ort_state.EngineError,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.ModelRequiresCompilation,
    ort_state.NoModel,
    ort_state.NoSuchFile,
    ort_state.NotFound,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output as the loaded graph has it.

    Attributes:
        name: The name in the graph.
        dtype: numpy's name, ``str`` for strings.
        shape: Sizes, names of dimensions, and None where the graph leaves one nameless.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class Session:
    """A loaded model. ``run`` may be called from several threads at once."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session
        self._bound: _Bound | None = None
        self._options = ort.RunOptions()
        self.inputs = tuple(_tensor_info(node) for node in session.get_inputs())
        self.outputs = tuple(_tensor_info(node) for node in session.get_outputs())
        self._output_names = [info.name for info in self.outputs]

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute every output.

        Raises:
            ModelRunError: onnxruntime failed, the session was released, or the run was interrupted
                (code ``interrupted``).
        """
        session = self._session
        if session is None:
            raise ModelRunError("the session was released; load the model again", code="released")
        try:
            if self._bound is not None:
                found = self._bound.run(feeds)
                if found is not None:
                    return found
            values = session.run(self._output_names, feeds, self._options)
        except MemoryError as error:
            raise ModelRunError(f"out of memory: {error}", code="out-of-memory") from error
        except _ORT_ERRORS as error:
            raise ModelRunError(
                f"the model failed: {_first_line(error)}", code=_run_code(error)
            ) from error
        return dict(zip(self._output_names, values))  # noqa: B905 - one for each, and this is quicker

    def bind(self, feeds: Mapping[str, Tensor]) -> None:
        """Take a shorter way for inputs of these very shapes from now on, if they are small.

        Runs that take it cannot be interrupted: it is for a model that is quick.

        Args:
            feeds: Such as the model is usually asked with. It is run with them.

        Raises:
            ModelRunError: See :meth:`run`.
        """
        outputs = self.run(feeds)
        if self._session is not None and _is_bindable(feeds, outputs):
            self._bound = _Bound(self._session, feeds, outputs)

    def interrupt(self) -> None:
        """End the runs that are under way, with an error at their next node; later ones go on."""
        options, self._options = self._options, ort.RunOptions()
        options.terminate = True

    def release(self) -> None:
        """Let go of the model. Idempotent; the memory returns with :func:`trim_memory`."""
        self._session = self._bound = None


class _Bound:
    """Runs over memory that onnxruntime is told of once: of one shape, and one at a time.

    Otherwise it looks at every array anew, which takes longer than a small model. What goes in and
    out is copied, so that nobody sees the memory but this.
    """

    __slots__ = ("_binding", "_free", "_given", "_name", "_outputs", "_session")

    def __init__(
        self,
        session: ort.InferenceSession,
        feeds: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
    ) -> None:
        ((self._name, array),) = feeds.items()
        self._given = np.array(array, order="C")
        self._outputs = [(name, np.empty_like(value, order="C")) for name, value in outputs.items()]
        self._session, self._binding = session, session.io_binding()
        self._free = threading.Lock()
        self._binding.bind_cpu_input(self._name, self._given)
        for name, memory in self._outputs:
            where = memory.ctypes.data
            self._binding.bind_output(name, "cpu", 0, memory.dtype.type, memory.shape, where)

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Compute every output; None for what is to take the ordinary way, which tells why."""
        array, given = feeds.get(self._name), self._given
        if (
            type(array) is not np.ndarray
            or array.shape != given.shape
            or array.dtype != given.dtype
            or len(feeds) != 1
            or not self._free.acquire(blocking=False)
        ):
            return None
        try:
            np.copyto(given, array)
            self._session.run_with_iobinding(self._binding)
            return {name: memory.copy() for name, memory in self._outputs}
        except _ORT_ERRORS:
            # an output that is of another shape this time, or a failure
            return None
        finally:
            self._free.release()


def _is_bindable(feeds: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> bool:
    tensors = [*feeds.values(), *outputs.values()]
    return len(feeds) == 1 and all(
        tensor.size and not tensor.dtype.hasobject and tensor.nbytes <= MOST_BOUND_BYTES
        for tensor in tensors
    )


def open_session(
    model_path: Path,
    options: SessionOptions,
    *,
    default_threads: int = 1,
    arena: bool = True,
    optimisation: Optimisation = "all",
) -> Session:
    """Load a model.

    Args:
        model_path: The ONNX file; external weights are found beside it.
        options: What the bundle asks for.
        default_threads: Stands for every number of threads that ``options`` leave at 0.
        arena: Whether onnxruntime keeps freed buffers for the next run: faster, more memory.
        optimisation: How far the graph is rewritten while loading.

    Raises:
        ModelLoadError: onnxruntime refuses the file, or the graph takes or gives no plain tensors.
    """
    try:
        session = ort.InferenceSession(
            str(model_path),
            _session_options(options, default_threads, arena=arena, level=_LEVELS[optimisation]),
            providers=["CPUExecutionProvider"],
        )
    except MemoryError as error:
        raise ModelLoadError(
            f"{model_path.name}: out of memory: {error}", code="out-of-memory"
        ) from error
    except _ORT_ERRORS as error:
        words = _first_line(error).replace(str(model_path), model_path.name)
        raise ModelLoadError(
            f"{model_path.name} does not load: {words}", code=_allocation_code(error)
        ) from error
    # without this a failing run is retried on a rebuilt session, in the middle of a request
    session.disable_fallback()
    try:
        return Session(session)
    except UnicodeDecodeError as error:
        raise ModelLoadError(
            f"{model_path.name}: an input or output has a name that is no text: {error}"
        ) from error


def trim_memory() -> None:
    """Give freed memory back to the kernel.

    glibc keeps what onnxruntime frees: without this, resident memory grows with every swap.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def known_operators() -> frozenset[tuple[str, str]]:
    """Domain and name of every operator that onnxruntime has a definition of."""
    return frozenset((item.domain, item.name) for item in ort_state.get_all_operator_schema())


def onnxruntime_version() -> str:
    """The version of onnxruntime in this process."""
    return str(ort.__version__)


def _session_options(
    options: SessionOptions, default_threads: int, *, arena: bool, level: ort.GraphOptimizationLevel
) -> ort.SessionOptions:
    wanted = ort.SessionOptions()
    wanted.intra_op_num_threads = options.intra_op_threads or default_threads
    wanted.inter_op_num_threads = options.inter_op_threads or default_threads
    wanted.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    wanted.graph_optimization_level = level
    wanted.enable_cpu_mem_arena = arena
    # what fails is raised with the same words; a log would show them again for every bad request
    wanted.log_severity_level = 4
    spinning = "1" if options.spinning else "0"
    wanted.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    wanted.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    prepacking = "0" if options.prepacking else "1"
    wanted.add_session_config_entry("session.disable_prepacking", prepacking)
    return wanted


def _tensor_info(node: Any) -> TensorInfo:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ModelLoadError(
            f"{node.name!r} is a {node.type}; edgepack serves {', '.join(sorted(_DTYPES))}"
        )
    shape = tuple(size if isinstance(size, int) else size or None for size in node.shape)
    return TensorInfo(name=node.name, dtype=dtype, shape=shape)


def _allocation_code(error: BaseException) -> str | None:
    # onnxruntime has no type of its own for this: it is an allocator's or C++'s message in a Fail
    told = str(error)
    short = "bad_alloc" in told or "Failed to allocate memory" in told
    return "out-of-memory" if short else None


def _run_code(error: BaseException) -> str | None:
    return "interrupted" if "terminate flag" in str(error) else _allocation_code(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:500]


@functools.cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy type of an element; strings are Python objects, as onnxruntime takes them."""
    return np.dtype(object if dtype == "str" else dtype)
