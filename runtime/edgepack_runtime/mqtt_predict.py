"""Predictions for those who ask over the broker: a request topic in, a response topic out.

Opt-in for each slot. Who may ask is the broker's to say; the answer goes nowhere but below this
device's own ``response`` topic, so that nobody can make a device publish for somebody else. The
protocols, counts and limits are those of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edgepack_contract.errors import DocumentError
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Request, Response
from edgepack_contract.topics import Kind, parse_topic
from edgepack_runtime.inference.errors import BadRequestError
from edgepack_runtime.link import Asked
from edgepack_runtime.serving.codec import Codec, Payload
from edgepack_runtime.serving.errors import OverloadError, UnknownModelError
from edgepack_runtime.serving.failure import response_of
from edgepack_runtime.serving.instances import InstancesCodec
from edgepack_runtime.serving.oip import OipCodec
from edgepack_runtime.serving.predict import predict
from edgepack_runtime.serving.slot import Slot

logger = logging.getLogger(__name__)

MOST_AT_WORK = 64
MOST_HANDED_OVER = 256
"""Beyond these a request is refused with words; beyond the second without."""

REMEMBERED = 1024
CORRELATION_BYTES = 1024

Answer = Callable[[str, bytes, bytes | None], bool]
"""Publishes (last level of the response topic, body, correlation); False when it cannot."""


class IgnoredError(DocumentError):
    """A request that gets no answer: there is nobody to send it to, or it is too late."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request that can be answered.

    Attributes:
        slot: Who is asked.
        reply: Last level of the response topic.
        id: The client's own name for it.
        correlation: What the answer carries back, of MQTT 5.
        v1: Whether it is of the v1 protocol.
    """

    slot: str
    reply: str
    id: str | None
    correlation: bytes | None
    v1: bool


def read_request(asked: Asked, *, tenant: str, device: str, now_ms: int) -> Question:
    """Decide whom a request is for and where its answer goes. Pure.

    Args:
        asked: The message.
        tenant: Ours.
        device: This one.
        now_ms: Wall clock, milliseconds since 1970 UTC.

    Raises:
        IgnoredError: Codes ``retained``, ``too-large``, ``malformed``, ``no-reply``,
            ``reply-elsewhere``, ``no-id`` and ``expired``.
        DocumentError: Its own topic is none of ours.
    """
    slot = parse_topic(asked.topic).name or ""
    if asked.retained:
        raise IgnoredError("a request must not be retained", code="retained")
    if len(asked.payload) > LIMITS.message_bytes:
        words = f"{len(asked.payload)} bytes, at most {LIMITS.message_bytes}"
        raise IgnoredError(words, code="too-large")
    try:
        head = _decoder.decode(asked.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IgnoredError(f"not a request: {error}", code="malformed") from error
    if head.expires_at is not None and head.expires_at <= now_ms:
        raise IgnoredError("it had expired", code="expired")
    correlation = asked.correlation
    if correlation is not None and len(correlation) > CORRELATION_BYTES:
        raise IgnoredError(f"correlation data over {CORRELATION_BYTES} bytes", code="too-large")
    if head.id is None and correlation is None:
        raise IgnoredError("it has no id", code="no-id")
    reply = _reply(asked.response_topic or head.reply_to, tenant, device)
    return Question(slot, reply, head.id, correlation, v1=bool(bytes(head.instances)))


class MqttPredictor:
    """Answers requests from the broker, each once. Used on the event loop, but for :meth:`take`.

    Args:
        slots: The slots by name; looked at anew for each request.
        admits: Whether a slot answers such requests.
        tenant: Ours.
        device: This one.
        answer: Publishes an answer.
        spawn: Runs a coroutine.
        now_ms: Wall clock, milliseconds since 1970 UTC.

    Attributes:
        counts: Requests by what became of them: ``answered``, ``failed``, ``unsent``,
            ``repeated``, ``crowded``, or the code that one was ignored with.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        *,
        admits: Callable[[str], bool],
        tenant: str,
        device: str,
        answer: Answer,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._slots, self._admits = slots, admits
        self._tenant, self._device = tenant, device
        self._answer, self._spawn, self._now_ms = answer, spawn, now_ms
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._handed_over = self._at_work = 0
        self._seen: OrderedDict[tuple[str, str | bytes], None] = OrderedDict()
        self.counts: Counter[str] = Counter()

    def take(self, asked: Asked) -> None:
        """Hand a request over to the loop, from any thread; beyond the bound it is dropped."""
        with self._lock:
            if self._handed_over >= MOST_HANDED_OVER:
                self.counts["crowded"] += 1
                return
            self._handed_over += 1
        self._loop.call_soon_threadsafe(self._begin, asked)

    def _begin(self, asked: Asked) -> None:
        try:
            question = read_request(
                asked, tenant=self._tenant, device=self._device, now_ms=self._now_ms()
            )
            if self._is_repeated(question):
                raise IgnoredError("it came before", code="repeated")
        except DocumentError as error:
            self.counts[error.code] += 1
            logger.warning(
                "request on %s ignored: %s", asked.topic, error, extra={"event": "request_ignored"}
            )
            self._end()
        else:
            self._spawn(self._attend(question, asked.payload))

    async def _attend(self, question: Question, payload: bytes) -> None:
        crowded = self._at_work >= MOST_AT_WORK
        self._at_work += 1
        try:
            if crowded:
                raise OverloadError(f"{MOST_AT_WORK} requests are being answered already")
            body = await self._ask(question, payload)
            self.counts["answered"] += 1
        except Exception as error:  # noqa: BLE001 - the outermost place that knows the request
            body = _error(question, error)
            self.counts["failed"] += 1
        finally:
            self._at_work -= 1
            self._end()
        if not self._answer(question.reply, body, question.correlation):
            self.counts["unsent"] += 1

    async def _ask(self, question: Question, payload: bytes) -> bytes:
        slot = self._slots.get(question.slot)
        if slot is None or not self._admits(question.slot):
            raise UnknownModelError(f"no model {question.slot!r} answers over MQTT here")
        codec = _INSTANCES if question.v1 else _OIP
        encoded = (await predict(slot, codec, Payload(payload))).encoded
        if encoded.json_bytes is not None:
            raise BadRequestError("binary tensors do not go by MQTT: ask without binary_data")
        body = encoded.body
        if question.v1 and question.id is not None:
            body = b'{"id":' + msgspec.json.encode(question.id) + b"," + body[1:]
        if len(body) > LIMITS.message_bytes:
            raise BadRequestError(
                f"the answer has {len(body)} bytes, by MQTT at most {LIMITS.message_bytes}: "
                "ask for fewer rows, or over HTTP"
            )
        return body

    def _is_repeated(self, question: Question) -> bool:
        """QoS 1 delivers at least once; one request is one prediction in the counts."""
        key = (question.reply, question.id or question.correlation or b"")
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _end(self) -> None:
        with self._lock:
            self._handed_over -= 1


def _reply(text: str | None, tenant: str, device: str) -> str:
    if text is None:
        raise IgnoredError("it does not say where the answer goes", code="no-reply")
    try:
        topic = parse_topic(text)
    except DocumentError as error:
        raise IgnoredError(
            f"its response topic is not ours: {error}", code="reply-elsewhere"
        ) from error
    ours = (topic.tenant, topic.device, topic.kind) == (tenant, device, Kind.RESPONSE)
    if not ours or topic.name is None:
        words = f"its response topic {text[:120]!r} is not below the response topic of this device"
        raise IgnoredError(words, code="reply-elsewhere")
    return topic.name


def _error(question: Question, error: Exception) -> bytes:
    answer = response_of(error)
    words = msgspec.json.decode(answer.body, type=Response).error
    return msgspec.json.encode(Response(id=question.id, error=words, status=answer.status))


_decoder = msgspec.json.Decoder(Request)
_INSTANCES: Codec = InstancesCodec()
_OIP: Codec = OipCodec()
