"""Messages on their way to the broker: written with the decision, published after its commit.

A crash between the two loses nothing: what is not marked as published is published again, the same
bytes. A message counts as published when the broker has acknowledged it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import OutboxRow

BATCH = 500
ACKNOWLEDGE_SECONDS = 5.0
"""How long a batch waits for the broker before the rest is tried again."""


@dataclass(frozen=True, slots=True)
class Message:
    """One MQTT publish, QoS 1."""

    topic: str
    payload: bytes
    retained: bool


class Delivery(Protocol):
    """A publish under way; also what paho calls a message info."""

    def wait_for_publish(self, timeout: float | None = None) -> None:
        """Wait until the broker acknowledged, or for ``timeout`` seconds."""

    def is_published(self) -> bool:
        """Whether the broker acknowledged."""


class Publisher(Protocol):
    """Where messages go: the MQTT link, and a recording one in tests."""

    @property
    def connected(self) -> bool:
        """Whether a publish has a chance."""

    def publish(self, message: Message) -> Delivery:
        """Hand a message over without waiting."""


def put(session: Session, message: Message, *, now_ms: int) -> None:
    """Add a message to the caller's transaction."""
    session.add(
        OutboxRow(
            topic=message.topic,
            payload=message.payload,
            retained=message.retained,
            created_ms=now_ms,
        )
    )


def publish_pending(database: Database, publisher: Publisher, *, now_ms: int) -> int:
    """Publish one batch, oldest first, and mark what the broker acknowledged.

    Returns:
        How many were acknowledged; 0 means that there is nothing to do, or nobody to do it with.
    """
    if not publisher.connected:
        return 0
    with database.read() as session:
        rows = session.execute(
            select(OutboxRow.id, OutboxRow.topic, OutboxRow.payload, OutboxRow.retained)
            .where(OutboxRow.published_ms.is_(None))
            .order_by(OutboxRow.id)
            .limit(BATCH)
        ).all()
    sent = [(row.id, publisher.publish(Message(*row[1:]))) for row in rows]
    done = _acknowledged(sent)
    if done:
        with database.write() as session:
            session.execute(
                update(OutboxRow).where(OutboxRow.id.in_(done)).values(published_ms=now_ms)
            )
    return len(done)


def forget_published(session: Session, *, before_ms: int) -> None:
    """Remove what was published before a time."""
    session.execute(delete(OutboxRow).where(OutboxRow.published_ms < before_ms))


def _acknowledged(sent: Sequence[tuple[int, Delivery]]) -> list[int]:
    deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
    done = []
    for row, delivery in sent:
        try:
            delivery.wait_for_publish(timeout=max(0.0, deadline - time.monotonic()))
        except (RuntimeError, ValueError):
            # paho raises these when the connection went away or its queue is full
            continue
        if delivery.is_published():
            done.append(row)
    return done
