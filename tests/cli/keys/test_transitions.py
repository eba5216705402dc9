"""State of the keyring x operation -> result, and who can sign it."""

from __future__ import annotations

import msgspec
import pytest
from bundle_samples import fixed_key
from hypothesis import given
from hypothesis import strategies as st

from edgepack_cli.errors import CommandError
from edgepack_cli.keys import transitions as to
from edgepack_contract.certificates import Authority
from edgepack_contract.keyring import SCHEMA, Keyring, KeyStatus, Publisher
from edgepack_contract.keys import PublicKey

NOW = 1_800_000_000_000
DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
OWNERS = [fixed_key(number) for number in range(10, 20)]
PUBLISHER, NEW_PUBLISHER, FLEET, NEW_FLEET = (fixed_key(number) for number in range(30, 34))
AUTHORITY, NEW_AUTHORITY = (
    Authority.create(fixed_key(number), name=str(number), now_ms=NOW) for number in (40, 41)
)


def fp(key):
    return key.public.fingerprint


def pems(*keys):
    return [key.public.pem.decode() for key in keys]


def keyring(**changes):
    base = Keyring(
        schema=SCHEMA, version=7, epoch=3, issued=NOW, owners=pems(*OWNERS[:3]), threshold=2,
        publishers=[Publisher(key=pems(PUBLISHER)[0], names=["digits"])], fleets=pems(FLEET),
        authorities=[AUTHORITY.pem.decode()],
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def statuses(ring):
    return {key: (str(one.status), one.digests) for key, (_, one) in ring.publisher_keys().items()}


def retired(*digests):
    return to.retire_publisher(keyring(), fp(PUBLISHER), digests)


def revoked():
    return to.revoke_publisher(keyring(), fp(PUBLISHER))


PUBLISHERS = [
    ("active, add", lambda: to.add_publisher(keyring(), NEW_PUBLISHER.public, ["x"]),
     {fp(PUBLISHER): ("active", []), fp(NEW_PUBLISHER): ("active", [])}),
    ("active, add it again", lambda: to.add_publisher(keyring(), PUBLISHER.public, ["x"]),
     "known-key"),
    ("active, retire", lambda: retired(OTHER, DIGEST, DIGEST),
     {fp(PUBLISHER): ("retired", [DIGEST, OTHER])}),
    ("active, retire for nothing", retired, {fp(PUBLISHER): ("retired", [])}),
    ("active, retire for what is no digest", lambda: retired("digits:1.0.0"), "bad-digest"),
    ("active, revoke", revoked, {fp(PUBLISHER): ("revoked", [])}),
    ("retired, retire", lambda: to.retire_publisher(retired(), fp(PUBLISHER), []), "not-active"),
    ("retired, revoke", lambda: to.revoke_publisher(retired(DIGEST), fp(PUBLISHER)),
     {fp(PUBLISHER): ("revoked", [])}),
    ("retired, add it again", lambda: to.add_publisher(retired(), PUBLISHER.public, ["x"]),
     "known-key"),
    ("revoked, retire", lambda: to.retire_publisher(revoked(), fp(PUBLISHER), []), "not-active"),
    ("revoked, revoke", lambda: to.revoke_publisher(revoked(), fp(PUBLISHER)),
     {fp(PUBLISHER): ("revoked", [])}),
    ("revoked, add it again", lambda: to.add_publisher(revoked(), PUBLISHER.public, ["x"]),
     "known-key"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "result"), [row[1:] for row in PUBLISHERS],
                         ids=[row[0] for row in PUBLISHERS])  # fmt: skip
def test_what_becomes_of_a_publisher(operation, result):
    outcome(operation, result, statuses)


def fleets(ring):
    return set(ring.fleet_keys()), ring.revoked_fleets


def without_fleet():
    return to.revoke_fleet(keyring(), fp(FLEET))


FLEETS = [
    ("in force, add", lambda: to.add_fleet(keyring(), NEW_FLEET.public),
     ({fp(FLEET), fp(NEW_FLEET)}, [])),
    ("in force, add it again", lambda: to.add_fleet(keyring(), FLEET.public), "known-key"),
    ("in force, revoke", without_fleet, (set(), [fp(FLEET)])),
    ("two, revoke one", lambda: to.revoke_fleet(to.add_fleet(keyring(), NEW_FLEET.public),
     fp(FLEET)), ({fp(NEW_FLEET)}, [fp(FLEET)])),
    ("revoked, add it again", lambda: to.add_fleet(without_fleet(), FLEET.public), "known-key"),
    ("revoked, revoke", lambda: to.revoke_fleet(without_fleet(), fp(FLEET)), (set(), [fp(FLEET)])),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "result"), [row[1:] for row in FLEETS],
                         ids=[row[0] for row in FLEETS])  # fmt: skip
def test_what_becomes_of_a_fleet_key(operation, result):
    outcome(operation, result, fleets)


def authorities(ring):
    return set(to.authorities_of(ring))


def owners(ring):
    return set(ring.owner_keys()), ring.threshold


def change(**changes):
    return lambda: to.change_owners(keyring(), **changes)


THREE = {fp(key) for key in OWNERS[:3]}
OTHERS = [
    ("add an authority", lambda: to.add_authority(keyring(), NEW_AUTHORITY.pem.decode()),
     authorities, {fp(AUTHORITY.key), fp(NEW_AUTHORITY.key)}),
    ("add it again", lambda: to.add_authority(keyring(), AUTHORITY.pem.decode()), authorities,
     "known-key"),
    ("revoke it", lambda: to.revoke_authority(keyring(), fp(AUTHORITY.key)), authorities, set()),
    ("add an owner", change(add=[OWNERS[3].public]), owners, (THREE | {fp(OWNERS[3])}, 2)),
    ("add one again", change(add=[OWNERS[0].public]), owners, "known-key"),
    ("remove an owner", change(remove={fp(OWNERS[0])}), owners, (THREE - {fp(OWNERS[0])}, 2)),
    ("remove too many", change(remove={fp(OWNERS[0]), fp(OWNERS[1])}), owners, "bad-threshold"),
    ("remove all", change(remove=THREE), owners, "bad-threshold"),
    ("replace one", change(add=[OWNERS[3].public], remove={fp(OWNERS[0])}), owners,
     (THREE - {fp(OWNERS[0])} | {fp(OWNERS[3])}, 2)),
    ("need all", change(threshold=3), owners, (THREE, 3)),
    ("need more than all", change(threshold=4), owners, "bad-threshold"),
    ("need none", change(threshold=0), owners, "bad-threshold"),
    ("too many", change(add=[fixed_key(number).public for number in range(50, 64)]), owners,
     "bad-threshold"),
    ("revoke a digest", lambda: to.revoke_digest(keyring(), DIGEST),
     lambda ring: ring.revoked_digests, [DIGEST]),
    ("revoke it twice", lambda: to.revoke_digest(keyring(revoked_digests=[OTHER, DIGEST]), DIGEST),
     lambda ring: ring.revoked_digests, [DIGEST, OTHER]),
    ("revoke what is none", lambda: to.revoke_digest(keyring(), "digits"), owners, "bad-digest"),
    ("begin an epoch", lambda: to.new_epoch(keyring()), lambda ring: ring.epoch, 4),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "view", "result"), [row[1:] for row in OTHERS],
                         ids=[row[0] for row in OTHERS])  # fmt: skip
def test_what_becomes_of_the_rest(operation, view, result):
    outcome(operation, result, view)


def outcome(operation, result, view):
    if isinstance(result, str):
        with pytest.raises(CommandError) as caught:
            operation()
        assert caught.value.code == result
        return
    assert view(operation()) == result


FOLLOW = [
    ("a change", keyring(fleets=pems(NEW_FLEET)), {}, None),
    ("nothing", keyring(), {}, None),
    ("no fleet key", keyring(fleets=[]), {}, "leave-none"),
    ("no fleet key, wanted", keyring(fleets=[]), {"leave_none": True}, None),
    ("no publisher", keyring(publishers=[]), {}, "leave-none"),
    ("none that is active", retired(DIGEST), {}, "leave-none"),
    ("none that is active, wanted", revoked(), {"leave_none": True}, None),
    ("no authority", keyring(authorities=[]), {}, "leave-none"),
    ("clock behind", keyring(), {"now_ms": NOW - 1}, "clock"),
    ("clock behind, new epoch", to.new_epoch(keyring()), {"now_ms": NOW - 1}, None),
]


@pytest.mark.parametrize(("after", "changes", "code"), [row[1:] for row in FOLLOW],
                         ids=[row[0] for row in FOLLOW])  # fmt: skip
def test_what_may_follow(after, changes, code):
    changes = {"now_ms": NOW + 1, **changes}
    if code is not None:
        with pytest.raises(CommandError) as caught:
            to.follow(keyring(), after, **changes)
        assert caught.value.code == code
        return
    following = to.follow(keyring(), after, **changes)
    assert (following.version, following.issued) == (8, changes["now_ms"])
    assert msgspec.structs.replace(following, version=7, issued=NOW) == after


def test_a_keyring_that_had_none_may_go_on_having_none():
    none = keyring(fleets=[], publishers=[], authorities=[])
    assert to.follow(none, none, now_ms=NOW).version == 8


def test_what_retired_stays_good_for_is_found_by_its_digest_only():
    after = to.follow(
        keyring(), to.add_publisher(retired(DIGEST), NEW_PUBLISHER.public, ["digits"]), now_ms=NOW
    )
    key = after.publisher_for(name="digits", digest=DIGEST, fingerprint=fp(PUBLISHER))
    assert isinstance(key, PublicKey)
    assert statuses(after)[fp(PUBLISHER)] == (KeyStatus.RETIRED, [DIGEST])


sets = st.lists(st.sampled_from(OWNERS[:6]), min_size=1, unique=True).flatmap(
    lambda keys: st.tuples(st.just(keys), st.integers(1, len(keys)))
)


@given(sets, sets, st.sets(st.sampled_from([fp(key) for key in OWNERS[:6]])))
def test_signers_are_enough_and_none_too_many(first, following, available):
    before, after = (
        keyring(owners=pems(*keys), threshold=many) for keys, many in (first, following)
    )
    old, new = set(before.owner_keys()), set(after.owner_keys())

    def enough(keys):
        return len(keys & old) >= before.threshold and len(keys & new) >= after.threshold

    chosen = to.choose_signers(before, after, available)
    if chosen is None:
        assert not enough(set(available))
        return
    assert set(chosen) <= available
    assert enough(set(chosen))
    assert not any(enough(set(chosen) - {one}) for one in chosen)
