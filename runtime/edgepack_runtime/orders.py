"""The signed documents that tell a device what to do: which it obeys, and why it refuses others.

Used on the event loop. What was refused for a reason that may pass (a keyring that comes later, a
clock that is set) is kept in memory and looked at again, because a broker sends what it retains
only once for each connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine

from edgepack_contract.errors import DocumentError, EdgepackError
from edgepack_contract.instructions import Identity, Obeyed, accept_desired, slots_digest
from edgepack_contract.keyring import Keyring
from edgepack_contract.limits import LIMITS
from edgepack_contract.messages import Desired
from edgepack_runtime.trust import Trust

logger = logging.getLogger(__name__)

_BY_CLOCK = frozenset({"expired", "future-dated"})
_MAY_PASS = frozenset({"unknown-key", "wrong-epoch"}) | _BY_CLOCK
"""Refusals that a newer keyring or a clock that is set can undo."""


class Orders:
    """What a device is told from afar, judged.

    Args:
        trust: The keyring and the time.
        identity: Who this device is.
        obey: Told a document that is to be obeyed.
        keyring_changed: Told the keyring that was in force until now.
        refusal_changed: Told that :attr:`refused` has changed.
        spawn: Runs what waits for the disk.
    """

    def __init__(
        self,
        trust: Trust,
        identity: Identity,
        *,
        obey: Callable[[Desired], None],
        keyring_changed: Callable[[Keyring], None],
        refusal_changed: Callable[[], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._trust, self._identity = trust, identity
        self._obey, self._keyring_changed = obey, keyring_changed
        self._refusal_changed, self._spawn = refusal_changed, spawn
        self._refusals: dict[str, str] = {}
        self._waiting: dict[str, bytes] = {}
        self._keyrings: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._advancing = False
        self.obeyed = Obeyed()
        self.counts: Counter[str] = Counter()

    @property
    def refused(self) -> str | None:
        """Code and words of what is refused now: the desired document, the keyring, the renewal."""
        found = (self._refusals.get(what) for what in ("desired", "keyring", "renewal"))
        return next((words for words in found if words), None)

    def take_desired(self, payload: bytes) -> None:
        """Obey a document, or say why not."""
        try:
            desired = self._accepted(payload)
        except DocumentError as error:
            self.refuse("desired", error.code, str(error))
            if error.code in _MAY_PASS and len(payload) <= LIMITS.desired_bytes:
                self._waiting[error.code] = payload
        else:
            self._begin(desired)

    def look_again(self) -> None:
        """Obey what was refused because of the clock, if the clock is well by now."""
        for code in _BY_CLOCK & self._waiting.keys():
            payload = self._waiting[code]
            try:
                desired = self._accepted(payload)
            except DocumentError:
                continue
            self._begin(desired)

    def take_keyring(self, raw: bytes) -> None:
        """Take up a newer keyring; of several that wait for the disk the last one is looked at."""
        if self._keyrings.full():
            self._keyrings.get_nowait()
        self._keyrings.put_nowait(raw)
        if not self._advancing:
            self._advancing = True
            self._spawn(self._advance())

    def refuse(self, what: str, code: str, words: str) -> None:
        """Tell of a refused ``desired`` document, a part of one, ``keyring`` or ``renewal``."""
        self.counts[code] += 1
        said = f"{code}: {words}"
        # Whoever floods a topic with one forgery must not make this device flood the broker.
        if self._refusals.get(what) == said:
            return
        self._refusals[what] = said
        logger.warning(
            "%s refused: %s", what, said, extra={"event": f"{what}_refused", "code": code}
        )
        self._refusal_changed()

    def settle(self, what: str) -> None:
        """Nothing of a kind is refused any more."""
        if self._refusals.pop(what, None):
            self._refusal_changed()

    async def advance(self, raw: bytes) -> bool:
        """Take up a newer keyring, and wait for the disk; whether there is one in force now."""
        before = self._trust.keyring
        try:
            advanced = await asyncio.to_thread(self._trust.advance, raw)
        except EdgepackError as error:
            self.refuse("keyring", error.code, str(error))
            return False
        self.settle("keyring")
        if advanced:
            self._keyring_changed(before)
            self._try_waiting()
        return advanced

    def _accepted(self, payload: bytes) -> Desired:
        clock = self._trust.clock
        return accept_desired(
            payload,
            keyring=self._trust.keyring,
            identity=self._identity,
            obeyed=self.obeyed,
            now_ms=clock.now_ms(),
            clock_is_behind=clock.is_behind,
        )

    def _begin(self, desired: Desired) -> None:
        self._refusals.pop("desired", None)
        self._waiting.clear()
        self.obeyed = Obeyed(
            epoch=desired.epoch,
            generation=desired.generation,
            slots_digest=slots_digest(desired),
            issued=desired.issued,
        )
        self._trust.clock.learn(desired.issued)
        self._spawn(asyncio.to_thread(self._trust.keep))
        self._obey(desired)

    async def _advance(self) -> None:
        try:
            while not self._keyrings.empty():
                await self.advance(self._keyrings.get_nowait())
        finally:
            self._advancing = False

    def _try_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for payload in waiting.values():
            self.take_desired(payload)
