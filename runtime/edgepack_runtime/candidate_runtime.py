"""The second model of a slot, installed like the first and apart from it.

It has an agent, a journal and a store of its own, in ``slots/<slot>/candidate``, so that nothing of
it can touch the first.

What the agent knows is a bundle; what the bundle is to do there is in ``terms.json`` beside its
journal. The terms are written first: after a power cut in between the document comes again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgepack_contract.canonical import canonical_json
from edgepack_contract.instructions import Obeyed
from edgepack_contract.limits import KIB
from edgepack_contract.messages import (
    Candidate,
    CandidateMode,
    CandidateReported,
    Ref,
    SlotDesired,
)
from edgepack_contract.states import Phase
from edgepack_runtime.activation.agent import SlotAgent
from edgepack_runtime.activation.state import PREPARING, SlotState, short_words
from edgepack_runtime.serving.candidate import Candidate as CandidatePlace
from edgepack_runtime.serving.shadow import takes_the_same
from edgepack_runtime.serving.slot import Slot
from edgepack_runtime.serving_host import NO_MEMORY
from edgepack_runtime.storage.fsio import DurableFS

logger = logging.getLogger(__name__)

FOLDER = "candidate"
_FILE = "terms.json"
_MAX_BYTES = 4 * KIB


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate is to do; ``code`` and ``words`` say why it does not."""

    digest: str
    mode: CandidateMode
    share: float
    code: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class _Promotion:
    """What the candidate is told when the model that it runs is the active one."""

    wish: SlotDesired
    obeyed: Obeyed


class CandidateRuntime:
    """A candidate with the thread that installs it, which there is only when there was a candidate.

    Used on the event loop, :meth:`drop` and :attr:`wanted` from any thread.

    Args:
        slot: The slot.
        active: Installs the active model of the slot.
        make_agent: Makes the agent of the candidate; it is started here.
        fs: Keeps the terms.
        folder: ``slots/<slot>/candidate``.
    """

    def __init__(
        self,
        slot: Slot,
        active: SlotAgent,
        make_agent: Callable[[], SlotAgent],
        *,
        fs: DurableFS,
        folder: Path,
    ) -> None:
        self._slot, self._place, self._active = slot, slot.candidate, active
        self._make_agent = make_agent
        self._fs, self._file = fs, folder / _FILE
        self._terms: Terms | None = None
        self._promotion: _Promotion | None = None
        self.agent: SlotAgent | None = None

    @property
    def wanted(self) -> str | None:
        """The digest of the bundle that is to run, None when none is."""
        terms = self._terms
        return terms.digest if terms and not terms.code else None

    @property
    def alive(self) -> bool:
        """Whether the candidate's thread runs, if there has to be one."""
        return self.agent is None or self.agent.alive

    @property
    def place(self) -> CandidatePlace:
        """Where it serves."""
        return self._place

    def open(self) -> None:
        """Take up what the disk says; terms that cannot be read are those of no candidate.

        Raises:
            DeviceError: The disk failed, or there is a file that nobody here wrote.
        """
        try:
            raw = self._fs.read_bounded(self._file, max_bytes=_MAX_BYTES)
            self._terms = msgspec.json.decode(raw, type=Terms)
        except (FileNotFoundError, msgspec.DecodeError):
            return
        self._place.settle(self._terms.mode, self._terms.share)
        self._started()

    def wish(self, desired: SlotDesired, obeyed: Obeyed) -> None:
        """Do what a document says of the candidate.

        Raises:
            DeviceError: The disk takes no terms.
        """
        if self._is_promoted(desired):
            # its files and its session are wanted a little longer, by the active model
            self._promotion = _Promotion(desired, obeyed)
            return
        self._promotion = None
        self._pursue(desired, obeyed)

    def active_changed(self) -> None:
        """Go on when the active model has taken over what was the candidate.

        Raises:
            DeviceError: The disk takes no terms.
        """
        promotion, state = self._promotion, self._active.state
        if promotion is None or not _has_attended(state, promotion.obeyed):
            return
        self._promotion = None
        self._pursue(promotion.wish, promotion.obeyed)

    def drop(self, code: str, words: str) -> None:
        """Let go of the candidate for good, until another document wants it.

        Raises:
            DeviceError: The disk failed.
        """
        terms, agent = self._terms, self.agent
        if terms is not None and agent is not None:
            logger.warning(
                "the candidate of slot %s is dropped: %s", self._slot.name, words,
                extra={"event": "candidate_dropped", "slot": self._slot.name, "code": code},
            )  # fmt: skip
            dropped = msgspec.structs.replace(terms, code=code, words=short_words(words))
            try:
                self._keep(dropped)
            finally:
                # what cannot be written down holds until the next start at least
                self._terms = dropped
                agent.reset()

    def status(self) -> CandidateReported | None:
        """How it is now, None without a candidate."""
        terms, agent = self._terms, self.agent
        if terms is None or agent is None:
            return None
        said, model = agent.status(), self._place.active
        code, words = (terms.code, terms.words) if terms.code else (said.code, said.words)
        failed = terms.code or said.phase is Phase.SAFE_MODE
        return CandidateReported(
            phase=Phase.FAILED if failed else said.phase,
            running=model.digest if model else None,
            version=model.version if model else None,
            wanted=terms.digest,
            mode=terms.mode,
            share=terms.share,
            code=code,
            words=words or self._blind(),
        )

    def stop(self) -> None:
        """End the thread."""
        if self.agent is not None:
            self.agent.stop()

    def _has_left(self, digest: str) -> bool:
        """Whether the agent believes that a bundle serves which had to go for a later one."""
        running, known = self._place.active, self.agent.state.active if self.agent else None
        believed = known is not None and known.digest == digest
        return believed and (running is None or running.digest != digest)

    def _blind(self) -> str:
        candidate, active = self._place.active, self._slot.active
        if candidate is None or active is None or self._place.mode is CandidateMode.SPLIT:
            return ""
        if takes_the_same(candidate, active):
            return ""
        return "it takes other inputs than the active model, so it sees none of them"

    def _is_promoted(self, desired: SlotDesired) -> bool:
        model, candidate = self._place.active, desired.candidate
        return (
            model is not None
            and desired.active is not None
            and desired.active.digest == model.digest
            and (candidate is None or candidate.ref.digest != model.digest)
        )

    def _pursue(self, desired: SlotDesired, obeyed: Obeyed) -> None:
        wanted = desired.candidate
        if wanted is None:
            if self.agent is not None:
                self._keep(None)
                self.agent.wish(SlotDesired(active=None), obeyed)
            return
        if wanted.ref.digest == self.wanted and self._terms is not None:
            # what it does may be another thing; what was decided of the bundle holds
            self._agree(wanted)
        else:
            code, words = _refused(wanted, desired, self._active.state)
            self._agree(wanted, code=code, words=words)
            if self.agent is not None and self._has_left(wanted.ref.digest):
                self.agent.empty()
        agent = self._started()
        agent.wish(self._as_active(desired, agent.state), obeyed)

    def _as_active(self, desired: SlotDesired, state: SlotState) -> SlotDesired:
        """The wish as the candidate's own agent is told it."""
        candidate = desired.candidate
        ref: Ref | None = candidate.ref if candidate and self.wanted else None
        released = list(desired.retry_blocked)
        if ref is not None and state.code == NO_MEMORY:
            # the machine was at fault, not the bundle
            released.append(ref.digest)
        return SlotDesired(active=ref, probation=desired.probation, retry_blocked=released)

    def _agree(self, wanted: Candidate, *, code: str = "", words: str = "") -> None:
        share = min(1.0, max(0.0, wanted.share))
        self._keep(
            Terms(
                digest=wanted.ref.digest, mode=wanted.mode, share=share, code=code,
                words=short_words(words),
            )
        )  # fmt: skip
        self._place.settle(wanted.mode, share)

    def _keep(self, terms: Terms | None) -> None:
        if terms != self._terms:
            self._fs.make_dirs(self._file.parent)
            self._fs.clean_temporaries(self._file.parent)
            # an empty file is the terms of no candidate
            self._fs.atomic_write(self._file, canonical_json(terms) if terms else b"")
            self._terms = terms

    def _started(self) -> SlotAgent:
        if self.agent is None:
            agent = self._make_agent()
            agent.start()
            self.agent = agent
        return self.agent


def _refused(wanted: Candidate, desired: SlotDesired, active: SlotState) -> tuple[str, str]:
    """Code and words of why a candidate must not run beside this active model; empty if it may."""
    digest, bound = wanted.ref.digest, active.name
    if desired.active is not None:
        bound = desired.active.name
        if desired.active.digest == digest:
            return "same-bundle", "the candidate is the bundle that is to be the active one"
    if bound is not None and wanted.ref.name != bound:
        words = f"this slot runs bundles named {bound}, not {wanted.ref.name}"
        return "wrong-name", words
    if active.is_blocked(digest) and digest not in desired.retry_blocked:
        words = "this bundle failed as the active one here before; only retry_blocked releases it"
        return "blocked", words
    return "", ""


def _has_attended(state: SlotState, obeyed: Obeyed) -> bool:
    told = (state.obeyed.epoch, state.obeyed.generation) >= (obeyed.epoch, obeyed.generation)
    return told and state.phase not in PREPARING | {Phase.ACTIVATING}
