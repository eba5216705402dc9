"""What is shown of a device to whoever is at it: plain data, the same with and without a daemon.

Times are milliseconds since 1970 UTC by the device's clock, sizes bytes. What is not known is None.
"""

from __future__ import annotations

import msgspec

from edgepack_contract.messages import CandidateReported, SlotReported
from edgepack_contract.states import Phase
from edgepack_runtime.activation.state import Installed, SlotState, Wish


class BundleView(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle of a slot; a wish knows no version before its bundle was opened."""

    digest: str
    name: str
    version: str | None = None


class LiveView(msgspec.Struct, frozen=True, kw_only=True):
    """What only the running daemon knows of a slot.

    ``since`` is when the model that answers began to. ``attended`` is how many wishes the slot has
    taken notice of, see :class:`~edgepack_runtime.activation.agent.Asked`; ``factory_trouble`` is
    why its factory bundle is not taken.
    """

    since: int | None = None
    last_prediction: int | None = None
    requests: int = 0
    errors: int = 0
    in_flight: int = 0
    attended: int = 0
    factory_trouble: str = ""


class SlotView(msgspec.Struct, frozen=True, kw_only=True):
    """One slot. ``serving`` is what answers now, None when nothing does or no daemon runs."""

    name: str
    phase: Phase
    code: str = ""
    words: str = ""
    progress: float = 0.0
    serving: BundleView | None = None
    active: BundleView | None = None
    previous: BundleView | None = None
    trial: BundleView | None = None
    wanted: BundleView | None = None
    pending: BundleView | None = None
    lost: BundleView | None = None
    revivals: int = 0
    candidate: CandidateReported | None = None
    blocked: list[str] = []
    floors: dict[str, int] = {}
    generation: int = 0
    install: int = 0
    attempts: int = 0
    exercised: bool = True
    live: LiveView | None = None


class CertificateView(msgspec.Struct, frozen=True, kw_only=True):
    """When a certificate of this device ends; ``problem`` says why that is not known."""

    what: str
    path: str
    expires: int | None = None
    problem: str = ""


class BrokerView(msgspec.Struct, frozen=True, kw_only=True):
    """The broker; ``connected`` is None when no daemon runs."""

    address: str
    connected: bool | None = None


class SpoolView(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for the broker; ``dropped`` was lost for want of room since the spool was made."""

    items: int
    bytes: int
    dropped: int


class CaptureView(msgspec.Struct, frozen=True, kw_only=True):
    """What was captured by this run of the daemon."""

    share: float
    kept: int
    dropped: int


class DaemonView(msgspec.Struct, frozen=True, kw_only=True):
    """What only the running daemon knows; ``refused`` is why it does not obey an order."""

    pid: int
    version: str
    session: int
    started: int
    memory: int | None
    refused: str | None
    keyring: int
    clock_behind: bool
    spool: SpoolView
    capture: CaptureView


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """A whole device. ``daemon`` is None when none runs; then ``slots`` are read from the disk."""

    device: str | None
    state_dir: str
    at: int
    slots: list[SlotView]
    broker: BrokerView | None = None
    certificates: list[CertificateView] = []
    disk_free: int | None = None
    memory_available: int | None = None
    cpu_celsius: float | None = None
    throttled: bool | None = None
    daemon: DaemonView | None = None


def slot_view(
    name: str,
    state: SlotState,
    status: SlotReported | None = None,
    live: LiveView | None = None,
) -> SlotView:
    """The view of a slot.

    Args:
        name: The slot.
        state: Its record.
        status: How it is by its daemon, None when none runs.
        live: What the daemon counted.
    """
    bundles = [one for one in (state.active, state.previous, state.trial) if one]
    running = status.running if status else None
    return SlotView(
        name=name,
        phase=state.phase,
        code=status.code if status else state.code,
        words=status.words if status else state.words,
        progress=status.progress if status else 0.0,
        serving=next((_bundle(one) for one in bundles if one.digest == running), None),
        active=_bundle(state.active),
        previous=_bundle(state.previous),
        lost=_bundle(state.lost.bundle if state.lost else None),
        revivals=state.lost.tries if state.lost else 0,
        trial=_bundle(state.trial),
        wanted=_wish(state.wanted, bundles),
        pending=_wish(state.pending, bundles),
        candidate=status.candidate if status else None,
        blocked=list(state.blocked),
        floors=state.floors,
        generation=state.obeyed.generation,
        install=state.install,
        attempts=state.attempts,
        exercised=state.exercised,
        live=live,
    )


def _bundle(one: Installed | None) -> BundleView | None:
    return BundleView(digest=one.digest, name=one.name, version=one.version) if one else None


def _wish(wish: Wish | None, bundles: list[Installed]) -> BundleView | None:
    if wish is None:
        return None
    version = next((one.version for one in bundles if one.digest == wish.ref.digest), None)
    return BundleView(digest=wish.ref.digest, name=wish.ref.name, version=version)
