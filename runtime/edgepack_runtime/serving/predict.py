"""The way of one prediction: decode, run, encode, count; inline when that is quick.

A hop to another thread costs more than a small model, so a small body whose run is estimated to
take less than :data:`INLINE_SECONDS` is answered on the event loop; anything else in the slot's
pool.
"""

from __future__ import annotations

from time import perf_counter_ns

import msgspec

from edgepack_contract.limits import KIB, MIB
from edgepack_runtime.inference.errors import InputError, ModelRunError
from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.batching import Batcher
from edgepack_runtime.serving.codec import Codec, Encoded, Payload, PredictRequest
from edgepack_runtime.serving.counting import Durations
from edgepack_runtime.serving.errors import (
    DeadlineError,
    NonfiniteOutputError,
    OverloadError,
)
from edgepack_runtime.serving.slot import INLINE_SECONDS, Slot

INLINE_BYTES = 64 * KIB
INLINE_TENSOR_BYTES = MIB


class Prediction(msgspec.Struct, frozen=True, gc=False):
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
        ModelRunError: The model failed, or (DeadlineError) did not answer in time.
        NonfiniteOutputError: It answered with NaN, and its bundle does not allow that.
    """
    call = Call(slot, codec, payload, version)
    if not call.at_once():
        await call.finish()
    call.settle()
    return call.prediction


class Call:
    """One request on its way, made with a lease on the model that is to answer.

    :meth:`at_once` must follow, :meth:`finish` when it says no, and then :meth:`settle`, which may
    come after the answer was sent. What the first two raise, as :func:`predict` does, has been
    counted, and the lease is given back. The steps follow each other, perhaps in different threads.

    Attributes:
        encoded: The answer, once there is one.
        version: The version that gives it.
    """

    __slots__ = (
        "_arrived", "_begun", "_codec", "_computed", "_decoded", "_done", "_finite", "_model",
        "_outputs", "_payload", "_request", "_slot", "_started", "_tenure", "encoded", "version",
    )  # fmt: skip

    encoded: Encoded
    _finite: bool
    _outputs: dict[str, Tensor]
    _request: PredictRequest

    def __init__(
        self, slot: Slot, codec: Codec, payload: Payload, version: str | None = None
    ) -> None:
        self._tenure = tenure = slot.lease(payload, version)
        self._slot, self._codec, self._payload = slot, codec, payload
        self._model = model = tenure.model
        self.version = model.version
        self._arrived = perf_counter_ns()

    @property
    def prediction(self) -> Prediction:
        """What came of it."""
        return Prediction(self.encoded, self.version)

    def at_once(self) -> bool:
        """Answer here and now when that is quick; whether it was."""
        model = self._model
        try:
            if self._is_large():
                return False
            self._started = perf_counter_ns()
            self._request = request = self._codec.decode(model, self._payload)
            self._decoded = perf_counter_ns()
            if self._tenure.batcher is not None:
                return False
            if model.estimated_seconds(request.feeds) >= INLINE_SECONDS:
                return False
            self._begun = perf_counter_ns()
            self._outputs = model.run(request.feeds)
            self._computed = perf_counter_ns()
            self._encode()
        except BaseException as error:
            self._failed(error)
            raise
        return True

    async def finish(self) -> None:
        """Answer in the slot's pool, or together with others."""
        large = self._is_large()
        try:
            if self._tenure.batcher is not None:
                await self._join(self._tenure.batcher, large=large)
            elif large:
                await self._slot.in_pool(self._decode_run_encode, self._model)
            else:
                await self._slot.in_pool(self._run_encode, self._model)
        except BaseException as error:
            self._failed(error)
            raise

    def settle(self) -> None:
        """Count the answer, and give the lease back."""
        slot, tenure = self._slot, self._tenure
        durations = Durations(
            (self._started - self._arrived) + (self._begun - self._decoded),
            self._decoded - self._started,
            self._computed - self._begun,
            self._done - self._computed,
        )
        try:
            slot.answered(tenure, self._request, self._outputs, durations, finite=self._finite)
        finally:
            slot.give_back(tenure)

    def _is_large(self) -> bool:
        """Whether reading the request takes so long that others would wait."""
        size = len(self._payload.body)
        if size < INLINE_BYTES:
            return False
        text = self._payload.json_bytes
        # tensors of numbers are taken as they lie there, and only looked through
        return (
            text is None
            or text >= INLINE_BYTES
            or size >= INLINE_TENSOR_BYTES
            or (self._model.takes_texts)
        )

    def _decode(self) -> None:
        self._started = perf_counter_ns()
        self._request = self._codec.decode(self._model, self._payload)
        self._decoded = perf_counter_ns()

    def _run(self) -> None:
        self._begun = perf_counter_ns()
        self._outputs = self._model.run(self._request.feeds)
        self._computed = perf_counter_ns()

    async def _join(self, batcher: Batcher, *, large: bool) -> None:
        if large:
            await self._slot.in_pool(self._decode)
        self._begun = perf_counter_ns()
        self._outputs = await batcher.run(self._request.feeds)
        self._computed = perf_counter_ns()
        self._encode()

    def _encode(self) -> None:
        model = self._model
        self._finite = model.is_finite(self._outputs)
        if not self._finite and model.description.on_nonfinite == "refuse":
            raise NonfiniteOutputError(
                f"model {self._slot.name!r} {model.version} answered NaN or an infinity, "
                "which its bundle refuses"
            )
        self.encoded = self._codec.encode(self._slot.name, model, self._request, self._outputs)
        self._done = perf_counter_ns()

    def _decode_run_encode(self) -> None:
        self._decode()
        self._run_encode()

    def _run_encode(self) -> None:
        self._run()
        self._encode()

    def _failed(self, error: BaseException) -> None:
        slot, tenure = self._slot, self._tenure
        elapsed_ns = perf_counter_ns() - self._arrived
        match error:
            case InputError():
                slot.refused(tenure, error.kind)
            case OverloadError():
                slot.refused(tenure, "overload")
            case DeadlineError():
                slot.failed(tenure, "deadline", elapsed_ns)
            case ModelRunError():
                slot.failed(tenure, "backend", elapsed_ns)
            case NonfiniteOutputError():
                slot.failed(tenure, "nonfinite_output", elapsed_ns)
            case _:
                pass
        slot.give_back(tenure)
