"""The loop that drives rollouts: gather evidence, decide, commit, once a tick.

All that a tick decides for one rollout is one transaction, in which the lease is checked and the
rollout is still the one that was looked at. A service that dies anywhere goes on from the last
commit. A rollout that cannot be decided is paused with the reason; the others go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy import delete
from sqlalchemy.exc import OperationalError

from edgepack_contract.states import RolloutState
from edgepack_fleet.config import TimingsConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import IdempotencyRow
from edgepack_fleet.desired import Batch, DesiredWriter
from edgepack_fleet.errors import LeaseLostError
from edgepack_fleet.gathering import gather_evidence
from edgepack_fleet.lease import DRIVER, Lease, acquire, check, release
from edgepack_fleet.outbox import forget_published
from edgepack_fleet.rollout import actions
from edgepack_fleet.rollout.eventlog import FLEET
from edgepack_fleet.rollout.machine import advance
from edgepack_fleet.rollouts import (
    commit_decision,
    driven_rollouts,
    load_rollout,
    why_unvouched,
)
from edgepack_fleet.telemetry import forget_windows

logger = logging.getLogger(__name__)

TIDY_SECONDS = 60.0
OUTBOX_KEPT_SECONDS = 3600.0
ANSWERS_KEPT_SECONDS = 86_400.0


class Controller:
    """Drives rollouts while it holds the lease.

    Args:
        database: The open database.
        writer: Signs what devices are told.
        timings: Seconds of tick, leases and retention.
        holder: Who this is; unique to a run of the process.
        now_ms: Wall clock, milliseconds since 1970 UTC.
        on_commit: Called after a tick that may have written to the outbox.
    """

    def __init__(
        self,
        database: Database,
        writer: DesiredWriter,
        *,
        timings: TimingsConfig,
        holder: str,
        now_ms: Callable[[], int],
        on_commit: Callable[[], None],
    ) -> None:
        self._database = database
        self._writer = writer
        self._timings = timings
        self._holder = holder
        self._now_ms = now_ms
        self._on_commit = on_commit
        self._lease: Lease | None = None
        self._tidied_ms = 0
        self._broken: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def driving(self) -> bool:
        """Whether this replica held the lease at the last tick."""
        return self._lease is not None

    def take_over(self) -> None:
        """Take the lease at once: the lock of the database file proves that nobody else lives.

        Documents that an earlier run wrote with another address, key or epoch are issued again.
        """
        now_ms = self._now_ms()
        with self._database.write() as session:
            self._lease = acquire(
                session,
                name=DRIVER,
                holder=self._holder,
                now_ms=now_ms,
                ttl_ms=self._lease_ms(),
                alone=True,
            )
        self._issue(self._writer.issue_changed, self._lease, now_ms)

    def start(self) -> None:
        """Tick until :meth:`stop`."""
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the tick and give the lease back."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        if self._lease is not None:
            with self._database.write() as session:
                release(session, self._lease, now_ms=self._now_ms())
            self._lease = None

    def tick(self) -> None:
        """Renew the lease, and with it drive every rollout that is under way."""
        now_ms = self._now_ms()
        with self._database.write() as session:
            self._lease = acquire(
                session,
                name=DRIVER,
                holder=self._holder,
                now_ms=now_ms,
                ttl_ms=self._lease_ms(),
            )
            if self._lease is None:
                return
        self._issue(self._writer.issue_due, self._lease, now_ms)
        with self._database.read() as session:
            driven = driven_rollouts(session)
        for rollout_id in driven:
            self._drive_or_pause(rollout_id, self._lease)
        if now_ms - self._tidied_ms >= TIDY_SECONDS * 1000:
            self._tidy(now_ms)
        self._on_commit()

    def _issue(self, issue: Callable[..., Batch], lease: Lease | None, now_ms: int) -> None:
        """Issue documents in transactions of their own, so that nobody waits for all of them."""
        after: str | None = ""
        while after is not None and lease is not None and not self._stopping.is_set():
            with self._database.write() as session:
                check(session, lease, now_ms=now_ms)
                after = issue(session, now_ms=now_ms, after=after).last

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except LeaseLostError as error:
                logger.warning("%s", error, extra={"event": "lease_lost"})
            except OperationalError:
                # the disk is full or the database locked: the next tick tries again
                logger.exception("tick failed", extra={"event": "tick_failed"})
            except Exception:
                # the outer boundary of the thread: without it rollouts would stand still silently
                logger.exception("tick failed", extra={"event": "tick_failed"})
            self._stopping.wait(self._timings.tick)

    def _drive_or_pause(self, rollout_id: str, lease: Lease) -> None:
        try:
            self._drive(rollout_id, lease)
            self._broken.pop(rollout_id, None)
        except (LeaseLostError, OperationalError):
            raise
        except Exception as error:
            # an outer boundary: one rollout that cannot be decided must not hold up the others
            reason = f"{type(error).__name__}: {error}"[:500]
            if self._broken.get(rollout_id) != reason:
                logger.exception("rollout %s cannot be driven", rollout_id)
            self._broken[rollout_id] = reason
            self._pause(rollout_id, lease, reason)

    def _drive(self, rollout_id: str, lease: Lease) -> None:
        now_ms = self._now_ms()
        with self._database.read() as session:
            rollout = load_rollout(session, rollout_id)
            distrust = why_unvouched(session, self._writer, rollout)
            evidence = gather_evidence(
                session,
                rollout,
                now_ms=now_ms,
                lease_ms=int(self._timings.device_lease * 1000),
            )
        if distrust is not None and rollout.state is RolloutState.RUNNING:
            decision = actions.pause(rollout, now_ms, actor=FLEET, reason=distrust)
        else:
            decision = advance(rollout, evidence, now_ms)
        if not decision.events:
            return
        with self._database.write() as session:
            check(session, lease, now_ms=now_ms)
            if load_rollout(session, rollout_id).sequence != rollout.sequence:
                return  # an operator was faster; the next tick decides on what there is then
            commit_decision(session, self._writer, decision, now_ms=now_ms)

    def _pause(self, rollout_id: str, lease: Lease, reason: str) -> None:
        now_ms = self._now_ms()
        with self._database.write() as session:
            check(session, lease, now_ms=now_ms)
            rollout = load_rollout(session, rollout_id)
            if rollout.state is RolloutState.RUNNING:
                words = f"it cannot be decided ({reason}); the log of the service has the details"
                decision = actions.pause(rollout, now_ms, actor=FLEET, reason=words)
                commit_decision(session, self._writer, decision, now_ms=now_ms)

    def _tidy(self, now_ms: int) -> None:
        """Remove what is kept for a time only."""
        with self._database.write() as session:
            forget_windows(session, before_ms=now_ms - int(self._timings.retention * 1000))
            forget_published(session, before_ms=now_ms - int(OUTBOX_KEPT_SECONDS * 1000))
            oldest = now_ms - int(ANSWERS_KEPT_SECONDS * 1000)
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_ms < oldest))
        self._tidied_ms = now_ms

    def _lease_ms(self) -> int:
        return int(self._timings.lease * 1000)
