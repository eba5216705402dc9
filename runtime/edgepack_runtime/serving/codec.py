"""What a protocol gives the predictor and takes back from it."""

from __future__ import annotations

from typing import Protocol

import msgspec

from edgepack_runtime.inference.session import Tensor
from edgepack_runtime.serving.model import ServingModel


class Payload(msgspec.Struct, frozen=True, gc=False):
    """What a caller sent, unpacked.

    Attributes:
        body: The body.
        json_bytes: How many of its first bytes are JSON, with binary tensors behind them; None when
            all of it is JSON.
        key: Whom or what the request is about, so that a split gives it the same model each time;
            None to go by the body.
    """

    body: bytes
    json_bytes: int | None = None
    key: bytes | None = None


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """An answer; ``json_bytes`` as in :class:`Payload`."""

    body: bytes
    json_bytes: int | None = None


class PredictRequest(msgspec.Struct, frozen=True):
    """One decoded request.

    Attributes:
        feeds: An array per input, checked against the description.
        id: The caller's own name for the request, echoed.
        outputs: Which outputs were asked for, None for all.
        binary: Which of them go back as bytes.
        single: Whether one row was asked about, and not a list of rows.
        key: As in :class:`Payload`.
    """

    feeds: dict[str, Tensor]
    id: str | None = None
    outputs: list[str] | None = None
    binary: frozenset[str] = frozenset()
    single: bool = False
    key: bytes | None = None

    @property
    def rows(self) -> int:
        """The first dimension of the first input; 1 where there is none."""
        for array in self.feeds.values():
            return array.shape[0] if array.ndim else 1
        return 1


class Codec(Protocol):
    """A protocol: bytes in, arrays out, and back. Pure; may run in any thread."""

    def decode(self, model: ServingModel, payload: Payload) -> PredictRequest:
        """Read a request.

        Raises:
            InputError: It does not fit the protocol or the model.
        """

    def encode(
        self, slot: str, model: ServingModel, request: PredictRequest, outputs: dict[str, Tensor]
    ) -> Encoded:
        """Write the answer."""
