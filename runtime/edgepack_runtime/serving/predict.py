"""The way of one prediction: decode, run, encode, count; inline when that is quick.

A hop to another thread costs more than a small model, so a small body whose run is estimated to
take less than :data:`INLINE_SECONDS` is answered on the event loop; anything else in the slot's
pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

from edgepack_contract.limits import KIB
from edgepack_runtime.inference.errors import InputError, ModelRunError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.codec import Codec, Encoded, Payload, PredictRequest
from edgepack_runtime.serving.counting import Durations
from edgepack_runtime.serving.errors import (
    NonfiniteOutputError,
    OverloadError,
)
from edgepack_runtime.serving.model import ServingModel
from edgepack_runtime.serving.slot import Slot

INLINE_SECONDS = 0.0003
INLINE_BYTES = 64 * KIB


@dataclass(frozen=True, slots=True)
class Prediction:
    """An encoded answer, and the version that gave it."""

    encoded: Encoded
    version: str


async def predict(
    slot: Slot, codec: Codec, payload: Payload, version: str | None = None
) -> Prediction:
    """Answer one request.

    Args:
        slot: Who is asked.
        codec: The protocol it is asked in.
        payload: What the caller sent.
        version: The version that must answer, None for whichever is active.

    Raises:
        NoModelError: The slot holds no model.
        UnknownModelError: No model of that version answers.
        InputError: The body does not fit.
        OverloadError: Too many requests wait already.
        ModelRunError: The model failed.
        NonfiniteOutputError: It answered with NaN, and its bundle does not allow that.
    """
    tenure = slot.lease(payload, version)
    call = _Call(slot.name, tenure.model, codec, payload)
    try:
        await _carry_out(slot, call)
    except InputError as error:
        slot.refused(tenure, error.kind)
        raise
    except OverloadError:
        slot.refused(tenure, "overload")
        raise
    except ModelRunError:
        slot.failed(tenure, "backend", call.elapsed_ns())
        raise
    except NonfiniteOutputError:
        slot.failed(tenure, "nonfinite_output", call.elapsed_ns())
        raise
    else:
        slot.answered(tenure, call.request, call.outputs, call.durations(), finite=call.finite)
        return Prediction(call.answer, tenure.model.version)
    finally:
        slot.give_back(tenure)


class _Call:
    """One request on its way. Its steps follow each other, perhaps in different threads."""

    __slots__ = (
        "_arrived", "_begun", "_codec", "_computed", "_decoded", "_done", "_model", "_payload",
        "_slot", "_started", "answer", "finite", "outputs", "request",
    )  # fmt: skip

    answer: Encoded
    finite: bool
    outputs: dict[str, Tensor]
    request: PredictRequest

    def __init__(self, slot: str, model: ServingModel, codec: Codec, payload: Payload) -> None:
        self._slot, self._model, self._codec, self._payload = slot, model, codec, payload
        self._arrived = perf_counter_ns()

    def decode(self) -> None:
        self._started = perf_counter_ns()
        self.request = self._codec.decode(self._model, self._payload)
        self._decoded = perf_counter_ns()

    def is_large(self) -> bool:
        return len(self._payload.body) >= INLINE_BYTES

    def is_quick(self) -> bool:
        return self._model.estimated_seconds(self.request.feeds) < INLINE_SECONDS

    def run(self) -> None:
        self._begun = perf_counter_ns()
        self.outputs = self._model.run(self.request.feeds)
        self._computed = perf_counter_ns()

    def encode(self) -> None:
        model = self._model
        self.finite = model.is_finite(self.outputs)
        if not self.finite and model.description.on_nonfinite == "refuse":
            raise NonfiniteOutputError(
                f"model {self._slot!r} {model.version} answered NaN or an infinity, "
                "which its bundle refuses"
            )
        self.answer = self._codec.encode(self._slot, model, self.request, self.outputs)
        self._done = perf_counter_ns()

    def decode_run_encode(self) -> None:
        self.decode()
        self.run()
        self.encode()

    def elapsed_ns(self) -> int:
        return perf_counter_ns() - self._arrived

    def durations(self) -> Durations:
        return Durations(
            queue=(self._started - self._arrived) + (self._begun - self._decoded),
            input=self._decoded - self._started,
            infer=self._computed - self._begun,
            output=self._done - self._computed,
        )


async def _carry_out(slot: Slot, call: _Call) -> None:
    if call.is_large():
        await slot.in_pool(call.decode_run_encode)
        return
    call.decode()
    if call.is_quick():
        call.run()
    else:
        await slot.in_pool(call.run)
    call.encode()
