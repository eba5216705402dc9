"""The outbox: nothing that was committed is lost, and order is kept."""

from __future__ import annotations

import pytest
from fleet_devices import NOW, RecordingPublisher
from sqlalchemy import func, select

from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import OutboxRow
from edgepack_fleet.outbox import BATCH, Message, forget_published, publish_pending, put


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield database
    database.close()


def fill(database, count):
    with database.write() as session:
        for number in range(count):
            put(session, Message(f"t/{number}", b"%d" % number, retained=True), now_ms=NOW)


def test_messages_go_out_once_and_in_order(database):
    fill(database, 5)
    publisher = RecordingPublisher()
    assert publish_pending(database, publisher, now_ms=NOW) == 5
    assert publish_pending(database, publisher, now_ms=NOW) == 0
    assert [message.payload for message in publisher.messages] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_rolled_back_decision_says_nothing(database):
    def decide() -> None:
        with database.write() as session:
            put(session, Message("t", b"x", retained=False), now_ms=NOW)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        decide()
    assert publish_pending(database, RecordingPublisher(), now_ms=NOW) == 0


def test_what_the_broker_did_not_acknowledge_goes_out_again_the_same(database):
    fill(database, 3)
    publisher = RecordingPublisher()
    publisher.acknowledges = False
    assert publish_pending(database, publisher, now_ms=NOW) == 0
    publisher.acknowledges = True
    assert publish_pending(database, publisher, now_ms=NOW) == 3
    assert publisher.messages[:3] == publisher.messages[3:]


def test_without_a_connection_nothing_is_tried(database):
    fill(database, 1)
    publisher = RecordingPublisher()
    publisher.connected = False
    assert publish_pending(database, publisher, now_ms=NOW) == 0
    assert publisher.messages == []


def test_a_backlog_goes_out_in_batches(database):
    fill(database, BATCH + 1)
    publisher = RecordingPublisher()
    assert publish_pending(database, publisher, now_ms=NOW) == BATCH
    assert publish_pending(database, publisher, now_ms=NOW) == 1


def test_only_published_messages_are_forgotten(database):
    fill(database, 2)
    publish_pending(database, RecordingPublisher(), now_ms=NOW)
    fill(database, 1)
    with database.write() as session:
        forget_published(session, before_ms=NOW + 1)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(OutboxRow)) == 1
