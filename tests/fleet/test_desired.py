"""Desired documents: the generation grows with what is asked for, and with nothing else."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from fleet_devices import NOW, ONE, TWO, FakeDevice, RecordingPublisher
from sqlalchemy import select

from edgepack_contract.instructions import Identity, Obeyed, accept_desired, slots_digest
from edgepack_contract.keyring import Keyring
from edgepack_contract.keys import PrivateKey, write_private_key
from edgepack_contract.messages import Desired, Probation
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import DesiredDocument, Device, OutboxRow
from edgepack_fleet.desired import Batch, DesiredWriter, SlotWish, put_all_again
from edgepack_fleet.devices import decommission_device
from edgepack_fleet.errors import NotFoundError
from edgepack_fleet.outbox import publish_pending
from edgepack_fleet.trust import Trust

FLEET_KEY = PrivateKey.generate()
DAY = 86_400_000


def writer(*, key=FLEET_KEY, epoch=1, base_url="http://127.0.0.1:8080"):
    trust = Trust(b"", keyring(key, epoch), key)
    return DesiredWriter(
        tenant="default", trusted=lambda: trust, base_url=base_url, ttl_ms=7 * DAY, refresh_ms=DAY
    )


def wish(digest=ONE, device="pi-1", slot="digits"):
    return SlotWish(device, slot, slot, digest, Probation(seconds=4.0), "rollout r1")


class Setup:
    def __init__(self, path):
        self.database = Database(f"sqlite:///{path}")
        self.device = FakeDevice("pi-1")
        with self.database.write() as session:
            self.device.enrol(session)

    def wish(self, digest=ONE, *, now_ms=NOW, slot="digits", by=None):
        with self.database.write() as session:
            return (by or writer()).wish(session, wish(digest, slot=slot), now_ms=now_ms)

    def stored(self):
        with self.database.read() as session:
            row = session.get_one(DesiredDocument, "pi-1")
            payload = msgspec.json.decode(row.envelope)["payload"]
            return row, msgspec.json.decode(base64.b64decode(payload), type=Desired)

    def outbox(self):
        with self.database.read() as session:
            return session.scalars(select(OutboxRow).order_by(OutboxRow.id)).all()

    def say(self, **fields):
        with self.database.write() as session:
            row = session.get_one(Device, "pi-1")
            for name, value in fields.items():
                setattr(row, name, value)


@pytest.fixture
def here(tmp_path):
    setup = Setup(tmp_path / "fleet.db")
    yield setup
    setup.database.close()


def keyring(key=FLEET_KEY, epoch=1):
    owner = PrivateKey.generate().public.pem.decode()
    return Keyring(
        schema="edgepack-keyring/1", version=1, epoch=epoch, issued=0, owners=[owner],
        publishers=[], fleets=[key.public.pem.decode()],
    )  # fmt: skip


def test_a_device_obeys_what_is_published(here):
    assert here.wish() == 1
    (message,) = here.outbox()
    identity = Identity("default", "pi-1", here.device.key.public.fingerprint)
    desired = accept_desired(
        message.payload, keyring=keyring(), identity=identity, obeyed=Obeyed(), now_ms=NOW
    )
    assert message.topic == "edgepack/v1/default/pi-1/desired"
    assert message.retained
    active = desired.slots["digits"].active
    assert (active.digest, active.sources) == (ONE, ["http://127.0.0.1:8080/digits"])
    assert desired.slots["digits"].probation.seconds == 4.0
    assert desired.expires == NOW + 7 * DAY


def test_the_same_wish_again_says_nothing(here):
    here.wish()
    assert here.wish(now_ms=NOW + 1000) == 1
    assert len(here.outbox()) == 1


def test_each_change_is_a_new_generation_and_slots_are_independent(here):
    assert [here.wish(ONE), here.wish(TWO), here.wish(ONE)] == [1, 2, 3]
    assert here.wish(TWO, slot="faces") == 4
    _, desired = here.stored()
    assert {name: slot.active.digest for name, slot in desired.slots.items()} == {
        "digits": ONE,
        "faces": TWO,
    }


def test_a_refresh_keeps_the_generation_and_is_newer(here):
    here.wish()
    _, first = here.stored()
    with here.database.write() as session:
        assert writer().issue_due(session, now_ms=NOW + DAY - 1) == Batch(0, None)
        assert writer().issue_due(session, now_ms=NOW + DAY) == Batch(1, None)
    _, second = here.stored()
    assert second.generation == first.generation
    assert second.issued > first.issued
    assert slots_digest(second) == slots_digest(first)


def test_a_clock_set_back_never_makes_an_older_document(here):
    here.wish()
    here.wish(TWO, now_ms=NOW - 5 * DAY)
    _, desired = here.stored()
    assert desired.issued == NOW + 1


@pytest.mark.parametrize(
    ("change", "grows"),
    [
        ({"base_url": "https://fleet.example"}, True),
        ({"epoch": 2}, False),
        ({"key": PrivateKey.generate()}, False),
        ({}, None),
    ],
    ids=["address", "epoch", "key", "nothing"],
)
def test_a_restart_with_other_settings_issues_again(here, change, grows):
    here.wish()
    with here.database.write() as session:
        batch = writer(**change).issue_changed(session, now_ms=NOW + 5)
    assert batch.issued == (0 if grows is None else 1)
    _, desired = here.stored()
    assert desired.generation == (2 if grows else 1)


@pytest.mark.parametrize(
    ("said", "generation"),
    [
        ({"generation_seen": 41, "epoch_seen": 1}, 42),
        ({"generation_seen": 1, "epoch_seen": 1, "refused": "equivocation: two"}, 2),
        ({"generation_seen": 41, "epoch_seen": 0}, 1),
        ({"generation_seen": 1, "epoch_seen": 1}, 1),
        ({"generation_seen": 1, "epoch_seen": 1, "refused": "expired: 5 s ago"}, 1),
        ({"generation_seen": 1, "epoch_seen": 1, "refused": "unknown-key: by equivocation:"}, 1),
    ],
    ids=["ahead", "equivocation", "other-epoch", "level", "other-refusal", "a-strangers-words"],
)
def test_a_database_from_a_backup_is_repaired_from_what_the_device_says(here, said, generation):
    here.wish()
    here.say(**said)
    with here.database.write() as session:
        assert writer().issue_due(session, now_ms=NOW + 5).issued == (generation > 1)
        assert writer().issue_due(session, now_ms=NOW + 6).issued == 0
    row, _ = here.stored()
    assert row.generation == generation


def test_a_decommissioned_device_is_told_nothing_more_and_its_topics_are_cleared(here):
    here.wish()
    with here.database.write() as session:
        decommission_device(session, "pi-1", now_ms=NOW)
        assert not writer().issue(session, "pi-1", now_ms=NOW + 9 * DAY)
        assert put_all_again(session, now_ms=NOW) == 0
    cleared = {row.topic.rsplit("/", 1)[1] for row in here.outbox() if row.payload == b""}
    assert cleared == {"state", "birth", "reported", "desired"}


def test_an_unknown_device_is_refused(here):
    with pytest.raises(NotFoundError), here.database.write() as session:
        writer().wish(session, wish(device="pi-9"), now_ms=NOW)


def test_after_a_broker_lost_everything_the_same_bytes_go_out_again(here):
    here.wish()
    here.wish(TWO)
    with here.database.write() as session:
        assert put_all_again(session, now_ms=NOW + 5) == 1
    rows = here.outbox()
    assert rows[-1].payload == rows[-2].payload != rows[0].payload


KILLED = """
import sys
from fleet_devices import NOW, ONE
from test_desired import writer, wish
from edgepack_contract.keys import read_private_key
from edgepack_fleet.db.database import Database
from pathlib import Path
database = Database(f"sqlite:///{sys.argv[1]}")
key = read_private_key(Path(sys.argv[2]))
with database.write() as session:
    writer(key=key).wish(session, wish(ONE), now_ms=NOW)
print("committed", flush=True)
sys.stdin.read()
"""


def test_killed_between_commit_and_publish_the_decision_goes_out_after_the_restart(tmp_path, here):
    here.database.close()
    write_private_key(tmp_path / "fleet.key", FLEET_KEY)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "fleet.db"), str(tmp_path / "fleet.key")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"committed\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    child.stdin.close()
    here.database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    publisher = RecordingPublisher()
    assert publish_pending(here.database, publisher, now_ms=NOW + 1) == 1
    row, desired = here.stored()
    assert publisher.messages[0].payload == row.envelope
    assert desired.generation == 1
    # told the same again after the restart, it stays the same generation
    assert here.wish(now_ms=NOW + 2) == 1
    assert publish_pending(here.database, publisher, now_ms=NOW + 3) == 0
