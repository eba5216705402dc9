"""The keyring in force: which may follow it, what a crash leaves, and what it does to rollouts."""

from __future__ import annotations

import base64

import msgspec
import pytest
from bundle_samples import PUBLISHER, fixed_key, keyring
from fleet_devices import NOW
from fleet_http import FLEET_KEY, OWNER, make_keys
from fleet_world import World
from sqlalchemy import select

from edgepack_contract.errors import (
    ConfigError,
    MalformedDocumentError,
    UntrustedBundleError,
    UntrustedDocumentError,
)
from edgepack_contract.instructions import Identity, Obeyed, accept_desired, sign_desired
from edgepack_contract.keyring import (
    KeyStatus,
    Publisher,
    make_keyring,
    open_keyring,
    sign_keyring,
    succeed_keyring,
)
from edgepack_contract.keys import write_private_key
from edgepack_contract.messages import Desired
from edgepack_contract.states import RolloutState
from edgepack_fleet import trust as trust_module
from edgepack_fleet.config import FleetConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.db.schema import AuditRow, DesiredDocument, Device, OutboxRow, RolloutRow
from edgepack_fleet.desired import Batch
from edgepack_fleet.errors import ConflictError, OperationError
from edgepack_fleet.rollouts import Action, Request, Verb, act_on_rollout, plan_rollout
from edgepack_fleet.trust import KeyringKeeper, Trust, read_trust

SECOND_KEY, THIEF, NEW_OWNER = fixed_key(21), FLEET_KEY, fixed_key(22)
ANN = {"actor": "ann", "address": "192.0.2.1", "now_ms": NOW}


def signed(version, *, owner=OWNER, epoch=1, fleets=(FLEET_KEY,), **changes):
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"], **changes)
    return make_keyring(
        owner, version=version, epoch=epoch, publishers=[publisher],
        fleets=[key.public for key in fleets],
    )  # fmt: skip


class Place:
    """The keys of a service in a folder, and its database."""

    def __init__(self, folder):
        self.folder = folder
        self.config = FleetConfig(data_dir=str(folder), keys=make_keys(folder))
        self.database = Database(self.config.database_url)
        self.refused = None
        self.open()

    def open(self):
        self.keeper = KeyringKeeper(
            self.config, self.database, read_trust(self.config.keys), refuse=self.refuse
        )

    def refuse(self, _):
        if self.refused is not None:
            raise self.refused

    @property
    def file(self):
        return (self.folder / "keyring.json").read_bytes()

    def name_fleet_keys(self, *names):
        keys = msgspec.structs.replace(
            self.config.keys, fleet=tuple(str(self.folder / name) for name in names)
        )
        self.config = msgspec.structs.replace(self.config, keys=keys)

    def left(self):
        with self.database.read() as session:
            audit = session.scalars(select(AuditRow).order_by(AuditRow.sequence)).all()
            outbox = session.scalars(select(OutboxRow).order_by(OutboxRow.id)).all()
        return [(row.action, row.actor, row.subject) for row in audit], outbox


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.database.close()


def test_a_newer_keyring_is_stored_told_recorded_and_in_force(place):
    trust = place.keeper.push(signed(2, epoch=2), **ANN)
    assert (trust.keyring.version, trust.keyring.epoch) == (2, 2)
    assert place.keeper.trust is trust
    audit, (message,) = place.left()
    assert audit == [("keyring.push", "ann", "version 2, epoch 2")]
    assert (message.topic, message.retained) == ("edgepack/v1/default/_fleet/keyring", True)
    assert message.payload == place.file == trust.file
    assert read_trust(place.config.keys).keyring == trust.keyring


def test_the_keyring_in_force_again_changes_nothing(place):
    before = place.file
    assert place.keeper.push(before, **ANN) is place.keeper.trust
    assert place.left() == ([], [])


@pytest.mark.parametrize(
    ("raw", "error", "code"),
    [
        (b"", MalformedDocumentError, "malformed-document"),
        (b"{}", MalformedDocumentError, None),
        (b" " * 300_000, MalformedDocumentError, "too-large"),
        (signed(2, owner=NEW_OWNER), UntrustedDocumentError, "unknown-key"),
        (signed(1, fleets=(SECOND_KEY,)), UntrustedDocumentError, "keyring-equivocation"),
        (signed(2, fleets=(SECOND_KEY,)), ConflictError, "unknown-fleet-key"),
        (signed(2, fleets=()), ConflictError, "unknown-fleet-key"),
    ],
    ids=["empty", "nonsense", "large", "owner", "equivocation", "other-key", "no-key"],
)
def test_what_does_not_follow_is_refused_and_changes_nothing(place, raw, error, code):
    before, trust = place.file, place.keeper.trust
    with pytest.raises(error) as got:
        place.keeper.push(raw, **ANN)
    assert code is None or got.value.code == code
    assert (place.file, place.keeper.trust, place.left()) == (before, trust, ([], []))


def test_an_older_one_and_an_earlier_epoch_are_refused(place):
    place.keeper.push(signed(5, epoch=3), **ANN)
    for raw, code in ((signed(4, epoch=3), "old-keyring"), (signed(6, epoch=2), "old-epoch")):
        with pytest.raises((MalformedDocumentError, UntrustedDocumentError)) as got:
            place.keeper.push(raw, **ANN)
        assert got.value.code == code
    assert place.keeper.trust.keyring.version == 5


def test_one_that_this_configuration_must_not_use_is_refused(place):
    place.refused = ConfigError("a demo's", code="demo-keyring")
    before = place.file
    with pytest.raises(ConfigError, match="a demo's"):
        place.keeper.push(signed(2), **ANN)
    assert (place.file, place.left()) == (before, ([], []))


def test_of_several_fleet_keys_the_one_that_the_keyring_names_last_signs(place):
    write_private_key(place.folder / "fleet-2.key", SECOND_KEY)
    place.name_fleet_keys("fleet-2.key", "fleet.key")
    place.open()
    assert place.keeper.trust.key.public.pem == FLEET_KEY.public.pem
    assert (
        place.keeper.push(signed(2, fleets=(FLEET_KEY, SECOND_KEY)), **ANN).key.public.pem
        == SECOND_KEY.public.pem
    )
    # and when the owner takes it away again, the other
    assert place.keeper.push(signed(3), **ANN).key.public.pem == FLEET_KEY.public.pem


def test_a_keyring_that_names_the_next_key_is_taken_once_its_file_is_there(place):
    place.name_fleet_keys("fleet.key", "fleet-2.key")
    place.keeper = KeyringKeeper(
        place.config, place.database, place.keeper.trust, refuse=place.refuse
    )
    raw = signed(2, fleets=(SECOND_KEY,))
    with pytest.raises(ConflictError, match=r"fleet-2\.key: No such file"):
        place.keeper.push(raw, **ANN)
    write_private_key(place.folder / "fleet-2.key", SECOND_KEY)
    assert place.keeper.push(raw, **ANN).key.public.pem == SECOND_KEY.public.pem


def test_lines_that_old_devices_need_are_kept_when_only_the_newest_is_pushed(place):
    first = place.file
    before = open_keyring(first, owner_fingerprint=OWNER.public.fingerprint)
    theirs = msgspec.structs.replace(before, version=2, owners=[NEW_OWNER.public.pem.decode()])
    handover = sign_keyring(theirs, [OWNER, NEW_OWNER])
    place.keeper.push(handover, **ANN)
    third = sign_keyring(msgspec.structs.replace(theirs, version=3), [NEW_OWNER])
    place.keeper.push(third, **ANN)
    for owner in (OWNER, NEW_OWNER):
        opened = open_keyring(place.file, owner_fingerprint=owner.public.fingerprint)
        assert opened.version == 3
    assert place.file == succeed_keyring(succeed_keyring(first, handover), third)


def test_a_folder_that_takes_no_file_is_said_and_nothing_changes(place, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgepack_fleet.trust.os.fsync", full)
    with pytest.raises(OperationError, match="No space left"):
        place.keeper.push(signed(2), **ANN)
    assert place.keeper.trust.keyring.version == 1
    assert place.left() == ([], [])


def test_the_file_is_read_anew_and_one_that_does_not_hold_is_not_used(place):
    (place.folder / "keyring.json").write_bytes(signed(2))
    assert place.keeper.reload(now_ms=NOW).keyring.version == 2
    assert place.left()[0] == [("keyring.load", "local", "version 2, epoch 1")]
    (place.folder / "keyring.json").write_bytes(signed(3, owner=NEW_OWNER))
    with pytest.raises(UntrustedDocumentError):
        place.keeper.reload(now_ms=NOW)
    assert place.keeper.trust.keyring.version == 2


def test_a_crash_before_the_commit_is_written_down_at_the_next_start(place, monkeypatch):
    def crash(path, file):
        store(path, file)
        raise KeyboardInterrupt

    store = trust_module._store
    monkeypatch.setattr(trust_module, "_store", crash)
    with pytest.raises(KeyboardInterrupt):
        place.keeper.push(signed(2), **ANN)
    # the file was replaced, the log knows nothing of it
    assert open_keyring(place.file, owner_fingerprint=OWNER.public.fingerprint).version == 2
    assert place.left()[0] == []
    place.open()
    place.keeper.record(now_ms=NOW)
    place.keeper.record(now_ms=NOW)
    assert place.left()[0] == [("keyring.load", "local", "version 2, epoch 1")]


# what a keyring does to devices and rollouts


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.digest = world.push("1.0.0")
    world.roll_out("1.0.0")
    world.next = world.push("1.1.0")
    yield world
    world.close()


def revoke_digest(world):
    revoked = msgspec.structs.replace(keyring(), version=2, revoked_digests=[world.next])
    world.trust = Trust(b"", revoked, world.trust.key)


def revoke_publisher(world):
    world.trust = Trust(b"", keyring(status=KeyStatus.REVOKED), world.trust.key)


REVOKE = pytest.mark.parametrize(
    ("revoke", "code"),
    [(revoke_digest, "revoked-digest"), (revoke_publisher, "revoked-publisher")],
)


@REVOKE
def test_a_running_rollout_of_what_becomes_revoked_is_paused_with_the_reason(world, revoke, code):
    rollout_id = world.start("1.1.0")
    world.step()
    revoke(world)
    world.step()
    rollout = world.rollout(rollout_id)
    assert rollout.state is RolloutState.PAUSED
    assert f"{code}: " in rollout.reason
    told = [device.told[-1] for device in world.devices]
    for _ in range(5):
        world.step()
    assert [device.told[-1] for device in world.devices] == told
    for verb in (Verb.RESUME, Verb.PROMOTE):
        with pytest.raises(UntrustedBundleError) as got, world.database.write() as session:
            act_on_rollout(
                session, world.writer, rollout_id, Action(verb, "ann"), now_ms=world.now_ms
            )
        assert got.value.code == code
    # but the way back is open
    with world.database.write() as session:
        back = Action(Verb.ROLLBACK, "ann")
        act_on_rollout(session, world.writer, rollout_id, back, now_ms=world.now_ms)
    world.run(lambda: world.rollout(rollout_id).finished_ms is not None)
    assert {device.running for device in world.devices} == {world.digest}


@REVOKE
def test_a_rollout_of_what_is_revoked_is_refused_when_planned_and_when_started(world, revoke, code):
    revoke(world)
    request = Request("digits", "1.1.0", "all", world.rollout(_first(world)).options, "ann")
    with world.database.read() as session, pytest.raises(UntrustedBundleError) as planned:
        plan_rollout(session, world.writer, request, now_ms=world.now_ms)
    with pytest.raises(UntrustedBundleError) as started:
        world.start("1.1.0")
    assert planned.value.code == started.value.code == code


def _first(world):
    with world.database.read() as session:
        return session.scalars(select(RolloutRow.id)).first()


def desired_of(world, device="pi-1"):
    with world.database.read() as session:
        row = session.get_one(DesiredDocument, device)
        payload = base64.b64decode(msgspec.json.decode(row.envelope)["payload"])
        return row.envelope, msgspec.json.decode(payload, type=Desired)


def test_after_a_stolen_fleet_key_a_new_epoch_begins_at_generation_one(world):
    """The thief makes a device obey generation 10^9, dated 2090; the owner begins a new epoch."""
    _, desired = desired_of(world)
    thief, far = world.trust.key, 3_786_912_000_000
    forged = msgspec.structs.replace(desired, generation=10**9, issued=far, expires=far + 1)
    device = next(one for one in world.devices if one.name == "pi-1")
    identity = Identity("default", "pi-1", device.key.public.fingerprint)
    old = msgspec.structs.replace(keyring(), fleets=[thief.public.pem.decode()])
    stolen = accept_desired(
        sign_desired(forged, thief), keyring=old, identity=identity, obeyed=Obeyed(), now_ms=far
    )
    with world.database.write() as session:
        row = session.get_one(Device, "pi-1")
        row.generation_seen, row.epoch_seen = stolen.generation, 1
    new = msgspec.structs.replace(
        keyring(), version=2, epoch=2, fleets=[SECOND_KEY.public.pem.decode()],
        revoked_fleets=[thief.public.fingerprint],
    )  # fmt: skip
    world.trust = Trust(b"", new, SECOND_KEY)
    world.controller.tick()
    envelope, after = desired_of(world)
    assert (after.epoch, after.generation, after.slots) == (2, 1, desired.slots)
    obeyed = Obeyed(epoch=1, generation=stolen.generation, issued=far)
    accept_desired(envelope, keyring=new, identity=identity, obeyed=obeyed, now_ms=world.now_ms)
    with pytest.raises(UntrustedDocumentError) as refused:
        accept_desired(
            sign_desired(forged, thief), keyring=new, identity=identity, obeyed=obeyed, now_ms=far
        )
    assert refused.value.code == "revoked-key"


def test_every_document_is_issued_again_in_bounded_transactions(world, monkeypatch):
    monkeypatch.setattr("edgepack_fleet.desired.BATCH", 2)
    world.trust = Trust(b"", keyring(), SECOND_KEY)
    with world.database.write() as session:
        first = world.writer.issue_due(session, now_ms=world.now_ms)
    assert first == Batch(2, "pi-2")
    # whatever happens between two batches, the next tick finds the rest
    world.controller.tick()
    with world.database.read() as session:
        signers = session.scalars(select(DesiredDocument.signed_by)).all()
    assert signers == [SECOND_KEY.public.fingerprint] * 3
    with world.database.write() as session:
        assert world.writer.issue_due(session, now_ms=world.now_ms) == Batch(0, None)
