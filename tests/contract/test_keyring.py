from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from bundle_samples import fixed_key
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack_contract.certificates import Authority
from edgepack_contract.errors import (
    DocumentError,
    MalformedDocumentError,
    UntrustedBundleError,
    UntrustedDocumentError,
)
from edgepack_contract.keyring import (
    SCHEMA,
    Keyring,
    KeyStatus,
    Publisher,
    advance_keyring,
    claimed_keyring,
    keyring_lines,
    make_keyring,
    open_keyring,
    owner_fingerprint,
    sign_keyring,
    succeed_keyring,
)
from edgepack_contract.keys import PrivateKey

OWNER, PUBLISHER, FLEET = (PrivateKey.generate() for _ in range(3))
AUTHORITY = Authority.create(PrivateKey.generate(), name="fleet", now_ms=1_800_000_000_000)
LEAF = AUTHORITY.issue_client(FLEET.public, name="pi-1", now_ms=1_800_000_000_000).pem.decode()
DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def publisher(**changes):
    return Publisher(**{"key": PUBLISHER.public.pem.decode(), "names": ["digits*"], **changes})


def ring(*publishers, owner=OWNER, version=3, revoked=None):
    return make_keyring(
        owner,
        version=version,
        epoch=1,
        publishers=list(publishers),
        fleets=[FLEET.public],
        revoked_digests=revoked,
    )


def trusted(raw):
    return open_keyring(raw, owner_fingerprint=OWNER.public.fingerprint)


def vouch(raw, *, name="digits", digest=DIGEST, key=PUBLISHER):
    return trusted(raw).publisher_for(name=name, digest=digest, fingerprint=key.public.fingerprint)


def test_the_pinned_owner_vouches_for_publishers_and_fleets():
    keyring = trusted(ring(publisher()))
    assert set(keyring.fleet_keys()) == {FLEET.public.fingerprint}
    assert vouch(ring(publisher())).fingerprint == PUBLISHER.public.fingerprint


def test_another_owner_is_refused_even_with_its_own_key_inside():
    with pytest.raises(UntrustedDocumentError):
        trusted(ring(publisher(), owner=PrivateKey.generate()))


def test_an_older_keyring_is_a_replay():
    raw = ring(publisher(), version=2)
    with pytest.raises(MalformedDocumentError) as caught:
        open_keyring(raw, owner_fingerprint=OWNER.public.fingerprint, minimum_version=3)
    assert caught.value.code == "old-keyring"


@pytest.mark.parametrize(
    ("keyring", "ask", "code"),
    [
        (ring(publisher()), {"name": "churn"}, "wrong-name"),
        (ring(publisher()), {"key": FLEET}, "unknown-publisher"),
        (ring(publisher(status=KeyStatus.REVOKED)), {}, "revoked-publisher"),
        (ring(publisher(status=KeyStatus.RETIRED)), {}, "retired-publisher"),
        (
            ring(publisher(status=KeyStatus.RETIRED, digests=[DIGEST])),
            {"digest": OTHER},
            "retired-publisher",
        ),
        (ring(publisher(), revoked=[DIGEST]), {}, "revoked-digest"),
    ],
    ids=["name", "key", "revoked", "retired", "retired-other", "digest"],
)
def test_who_may_not_sign_what(keyring, ask, code):
    with pytest.raises(UntrustedBundleError) as caught:
        vouch(keyring, **ask)
    assert caught.value.code == code


def test_a_retired_key_stays_good_for_what_it_lists():
    assert vouch(ring(publisher(status=KeyStatus.RETIRED, digests=[DIGEST])))


# --- owners, successors and who may make them ---------------------------------------------------

KEYS = [fixed_key(number) for number in range(10, 22)]


def pems(keys):
    return [key.public.pem.decode() for key in keys]


def keyring_of(version, owners, *, threshold=1, epoch=1, **changes):
    return Keyring(
        schema=SCHEMA, version=version, epoch=epoch, issued=version, owners=pems(owners),
        threshold=threshold, publishers=[], fleets=[], **changes,
    )  # fmt: skip


def line(version, owners, signers, **changes):
    return sign_keyring(keyring_of(version, owners, **changes), signers)


def pin(owners, threshold=1):
    return owner_fingerprint([key.public for key in owners], threshold)


A, B, C, D = KEYS[:4]
FIRST = line(1, [A, B, C], [A, B], threshold=2)
OWNERS = pin([A, B, C], 2)
CURRENT = open_keyring(FIRST, owner_fingerprint=OWNERS)


def test_a_single_owner_is_pinned_by_its_own_fingerprint_several_by_all_and_the_threshold():
    assert pin([A]) == A.public.fingerprint
    assert pin([A, B], 1) == pin([B, A], 1)
    assert len({pin([A, B], 1), pin([A, B], 2), pin([A, C], 1), pin([A])}) == 4


@pytest.mark.parametrize(
    ("following", "code"),
    [
        (line(2, [A, B, C], [A, C], threshold=2), None),
        (line(9, [A, B, C], [A, B, C], threshold=2), None),
        (line(2, [A, B, D], [A, B], threshold=2), None),
        (line(2, [A, B], [A, B], threshold=2), None),
        (line(2, [D], [A, B, D]), None),
        (line(2, [A, B, C], [A], threshold=2), "bad-signature"),
        (line(2, [A, B, C], [A, A, A], threshold=2), "bad-signature"),
        (line(2, [A, B, C], [], threshold=2), "unknown-key"),
        (line(2, [A, B, C], [D], threshold=2), "unknown-key"),
        (line(2, [A, B, C], [A], threshold=1), "bad-signature"),
        (line(2, [A], [A]), "bad-signature"),
        (line(2, [D], [D]), "unknown-key"),
        (line(2, [D], [A, D]), "bad-signature"),
        (line(2, [D], [A, B]), "unknown-key"),
        (line(2, [A, D], [A, B], threshold=2), "bad-signature"),
        (line(2, [A, B, C], [A, B], threshold=2, epoch=2), None),
        (line(1, [A, B, C], [A, B], threshold=2, revoked_digests=[DIGEST]), "keyring-equivocation"),
        (line(1, [A, B, C], [A], threshold=2, revoked_digests=[DIGEST]), "bad-signature"),
        (line(1, [D], [D]), "unknown-key"),
        (line(2, [A, B], [A, B], threshold=3), "bad-threshold"),
        (line(2, [A, A], [A, B], threshold=2), "bad-threshold"),
        (b"{}", "malformed-document"),
        (b"", "malformed-document"),
        (b"\n \n", "malformed-document"),
        (b" " * 300_000, "too-large"),
    ],
)
def test_who_can_make_a_successor(following, code):
    if code is None:
        assert advance_keyring(CURRENT, following).version > 1
        assert open_keyring(FIRST + b"\n" + following, owner_fingerprint=OWNERS).version > 1
        return
    with pytest.raises(DocumentError) as caught:
        advance_keyring(CURRENT, following)
    assert caught.value.code == code


def test_an_epoch_never_falls_whoever_signs():
    current = open_keyring(line(1, [A], [A], epoch=2), owner_fingerprint=pin([A]))
    with pytest.raises(UntrustedDocumentError) as caught:
        advance_keyring(current, line(2, [A], [A], epoch=1))
    assert caught.value.code == "old-epoch"


def test_the_same_keyring_again_changes_nothing_and_an_older_file_is_a_replay():
    second = line(2, [A, B, C], [B, C], threshold=2)
    newer = advance_keyring(CURRENT, second)
    assert advance_keyring(newer, second) == newer
    assert advance_keyring(newer, FIRST + b"\n" + second) == newer
    with pytest.raises(MalformedDocumentError) as caught:
        advance_keyring(newer, FIRST)
    assert caught.value.code == "old-keyring"


CHAIN = [line(1, [A], [A]), line(2, [B], [A, B]), line(3, [B], [B]), line(4, [C], [B, C])]


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ([0, 1, 2, 3], None),
        ([0, 1, 3], None),
        ([0, 2, 3], "unknown-key"),
        ([0, 3], "unknown-key"),
        ([0, 2, 1, 3], "old-keyring"),
        ([1, 0], "old-keyring"),
        ([0, 0, 1], "old-keyring"),
        ([3], "unknown-key"),
    ],
)
def test_lines_that_are_missing_or_in_another_order_are_refused(order, code):
    raw = b"\n".join(CHAIN[place] for place in order)
    if code is None:
        assert open_keyring(raw, owner_fingerprint=pin([A])).version == 4
        return
    for read in (
        lambda: open_keyring(raw, owner_fingerprint=pin([A])),
        lambda: advance_keyring(open_keyring(CHAIN[0], owner_fingerprint=pin([A])), raw),
    ):
        with pytest.raises(DocumentError) as caught:
            read()
        assert caught.value.code == code


def test_a_file_that_was_cut_is_an_earlier_one_or_none():
    raw = b"\n".join(CHAIN[:2])
    current = open_keyring(raw, owner_fingerprint=pin([A]))
    for end in range(len(raw)):
        with pytest.raises(DocumentError):
            advance_keyring(current, raw[:end])


def test_every_altered_byte_is_noticed_or_means_nothing():
    raw = b"\n".join(CHAIN[:2])
    whole = open_keyring(raw, owner_fingerprint=pin([A]))
    for place in range(len(raw)):
        altered = bytearray(raw)
        altered[place] ^= 1
        try:
            found = open_keyring(bytes(altered), owner_fingerprint=pin([A]))
        except DocumentError:
            continue
        assert found == whole, place


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schema": "edgepack-keyring/2"}, "bad-schema"),
        ({"threshold": 2}, "bad-threshold"),
        ({"authorities": ["no certificate"]}, "malformed-document"),
        ({"authorities": [LEAF]}, "malformed-document"),
        ({"fleets": ["no key"]}, "malformed-document"),
        ({"owners": ["no key"]}, "malformed-document"),
        (
            {"publishers": [publisher(), publisher(status=KeyStatus.REVOKED)]},
            "contradictory-keyring",
        ),
        (
            {"fleets": pems([FLEET]), "revoked_fleets": [FLEET.public.fingerprint]},
            "contradictory-keyring",
        ),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_keyring_that_cannot_be_used_is_refused_even_when_its_owner_signed_it(changes, code):
    raw = sign_keyring(msgspec.structs.replace(keyring_of(1, [A]), **changes), [A])
    with pytest.raises(MalformedDocumentError) as caught:
        open_keyring(raw, owner_fingerprint=pin([A]))
    assert caught.value.code == code


def test_a_file_keeps_what_leads_every_earlier_owner_on_and_nothing_else():
    raw = CHAIN[0]
    for one in [line(5, [A], [A]), line(6, [A], [A])]:
        raw = succeed_keyring(raw, one)
    assert raw == line(6, [A], [A])
    for one in [line(7, [B], [A, B]), line(8, [B], [B]), line(9, [B], [B]), line(10, [C], [B, C])]:
        raw = succeed_keyring(raw, one)
    versions = [claimed_keyring(one)[0].version for one in keyring_lines(raw)]
    assert versions == [6, 7, 9, 10]
    with pytest.raises(MalformedDocumentError):
        succeed_keyring(raw, line(10, [C], [C]))


def owner_sets():
    return st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True).flatmap(
        lambda owners: st.tuples(st.just(owners), st.integers(1, len(owners)))
    )


steps = st.lists(
    st.tuples(st.one_of(st.none(), owner_sets()), st.integers(1, 3), st.integers(0, 1)), max_size=10
)


@settings(max_examples=40)
@given(owner_sets(), steps)
def test_from_whichever_keyring_a_device_has_the_newest_file_leads_on(first, history):
    """Any owners that were ever pinned, and any earlier keyring, find the newest one."""
    owners, threshold = first
    version = epoch = 1
    file = line(1, owners, owners, threshold=threshold)
    pins, had = [pin(owners, threshold)], [open_keyring(file, owner_fingerprint=pin(*first))]
    for change, versions, epochs in history:
        before, needed = owners, threshold
        owners, threshold = change or (owners, threshold)
        version, epoch = version + versions, epoch + epochs
        signers = list(dict.fromkeys([*before[:needed], *owners[-threshold:]], None))
        one = line(version, owners, signers, threshold=threshold, epoch=epoch)
        newest = advance_keyring(had[-1], file + b"\n" + one)
        file = succeed_keyring(file, one)
        pins.append(pin(owners, threshold))
        had.append(newest)
    assert [one.version for one in had] == sorted({one.version for one in had})
    assert [one.epoch for one in had] == sorted(one.epoch for one in had)
    for one in pins:
        assert open_keyring(file, owner_fingerprint=one) == had[-1]
    for one in had:
        assert advance_keyring(one, file) == had[-1]


@given(owner_sets(), owner_sets(), st.data())
def test_fewer_than_the_threshold_of_owners_make_nothing(first, following, data):
    owners, threshold = first
    current = open_keyring(
        line(1, owners, owners, threshold=threshold), owner_fingerprint=pin(owners, threshold)
    )
    thieves = data.draw(st.lists(st.sampled_from(owners), max_size=threshold - 1, unique=True))
    strangers = [key for key in KEYS if key not in owners]
    forged = line(2, following[0], [*thieves, *strangers], threshold=following[1])
    with pytest.raises(UntrustedDocumentError):
        advance_keyring(current, forged)


GOLDEN = Path(__file__).parent / "golden" / "v1" / "keyring.json"
GOLDEN_PINS = [
    "0f7b22bc5353cc1f727790b717728239549cd0410f10f9c087e628c644ba4987",
    "4a523ad4dada56f0c5fe2bedb92ab65482ef7732798c9af34589d1fb2badfa97",
]


@pytest.mark.parametrize("pinned", GOLDEN_PINS, ids=["one owner", "two of three"])
def test_a_keyring_file_of_version_1_is_read_for_good(pinned):
    """It has every field, and a line each for a first owner, her three successors, and a change."""
    raw = GOLDEN.read_bytes()
    keyring = open_keyring(raw, owner_fingerprint=pinned)
    assert len(keyring_lines(raw)) == 3
    assert (keyring.version, keyring.epoch, keyring.threshold) == (3, 2, 2)
    assert [one.status for one in keyring.publishers] == [KeyStatus.RETIRED, KeyStatus.ACTIVE]
    assert list(keyring.fleet_keys()) == [fixed_key(33).public.fingerprint]
    assert keyring.revoked_fleets == [fixed_key(32).public.fingerprint]
    assert keyring.owner_fingerprint == GOLDEN_PINS[1]
