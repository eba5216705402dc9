from __future__ import annotations

import msgspec
import pytest

from edgepack_contract.errors import MalformedDocumentError, UntrustedDocumentError
from edgepack_contract.instructions import (
    CLOCK_SKEW_MS,
    Identity,
    Obeyed,
    accept_desired,
    sign_desired,
    slots_digest,
)
from edgepack_contract.keyring import make_keyring, open_keyring
from edgepack_contract.keys import PrivateKey
from edgepack_contract.messages import Desired, Ref, SlotDesired

OWNER, FLEET = PrivateKey.generate(), PrivateKey.generate()
KEYRING = open_keyring(
    make_keyring(OWNER, version=1, epoch=2, publishers=[], fleets=[FLEET.public]),
    owner_fingerprint=OWNER.public.fingerprint,
)
IDENTITY = Identity("default", "pi-1", "e" * 64)
NOW = 1_800_000_000_000
HOUR = 3_600_000


def wish(digest_of="1"):
    ref = Ref(
        name="digits", digest="sha256:" + digest_of * 64, sources=["http://127.0.0.1:1/digits"]
    )
    return {"digits": SlotDesired(active=ref)}


DESIRED = Desired(
    tenant="default", device="pi-1", enrolment="e" * 64, epoch=2, generation=5,
    issued=NOW - HOUR, expires=NOW + HOUR, slots=wish(),
)  # fmt: skip
BEFORE = Obeyed(epoch=2, generation=5, slots_digest=slots_digest(DESIRED), issued=NOW - HOUR)


def accept(desired, *, obeyed=BEFORE, key=FLEET, now=NOW, keyring=KEYRING, behind=False):
    return accept_desired(
        sign_desired(desired, key), keyring=keyring, identity=IDENTITY, obeyed=obeyed, now_ms=now,
        clock_is_behind=behind,
    )  # fmt: skip


@pytest.mark.parametrize(
    "desired",
    [
        DESIRED,
        msgspec.structs.replace(DESIRED, issued=NOW, expires=NOW + 2 * HOUR),
        msgspec.structs.replace(DESIRED, generation=6, slots=wish("2")),
    ],
    ids=["the same again", "a refresh", "a new generation"],
)
def test_obeyed(desired):
    assert accept(desired) == desired


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device": "pi-2"}, "wrong-device"),
        ({"tenant": "acme"}, "wrong-device"),
        ({"enrolment": "f" * 64}, "wrong-enrolment"),
        ({"epoch": 1}, "wrong-epoch"),
        ({"epoch": 3}, "wrong-epoch"),
        ({"generation": 4}, "old-generation"),
        ({"slots": wish("2")}, "equivocation"),
        ({"issued": NOW - 2 * HOUR}, "replay"),
        ({"expires": NOW - 1}, "expired"),
        ({"issued": NOW + HOUR, "expires": NOW + 2 * HOUR}, "future-dated"),
    ],
)
def test_refused_with_its_own_code(changes, code):
    with pytest.raises(UntrustedDocumentError) as caught:
        accept(msgspec.structs.replace(DESIRED, **changes))
    assert caught.value.code == code


def test_a_larger_epoch_resets_the_generation():
    obeyed = Obeyed(epoch=1, generation=900, slots_digest="sha256:x", issued=NOW + 9 * HOUR)
    assert accept(DESIRED, obeyed=obeyed) == DESIRED


def test_a_stranger_cannot_instruct():
    with pytest.raises(UntrustedDocumentError) as caught:
        accept(DESIRED, key=PrivateKey.generate())
    assert caught.value.code == "unknown-key"


def test_an_oversized_document_is_not_even_parsed():
    with pytest.raises(MalformedDocumentError) as caught:
        accept_desired(b" " * 70_000, keyring=KEYRING, identity=IDENTITY, obeyed=BEFORE, now_ms=NOW)
    assert caught.value.code == "too-large"


def test_a_revoked_fleet_key_is_refused_by_that_name_and_a_stranger_cannot_borrow_it():
    thief = PrivateKey.generate()
    keyring = msgspec.structs.replace(KEYRING, revoked_fleets=[thief.public.fingerprint])
    with pytest.raises(UntrustedDocumentError, match="version 1 revokes") as caught:
        accept(DESIRED, key=thief, keyring=keyring)
    assert caught.value.code == "revoked-key"
    assert accept(DESIRED, keyring=keyring) == DESIRED
    with pytest.raises(UntrustedDocumentError) as caught:
        accept(DESIRED, key=PrivateKey.generate(), keyring=keyring)
    assert caught.value.code == "unknown-key"


def test_a_clock_that_is_behind_cannot_call_a_document_future_dated_but_can_see_it_expired():
    ahead = msgspec.structs.replace(DESIRED, issued=NOW + HOUR, expires=NOW + 2 * HOUR)
    assert accept(ahead, behind=True) == ahead
    with pytest.raises(UntrustedDocumentError) as caught:
        accept(msgspec.structs.replace(DESIRED, expires=NOW - 1), behind=True)
    assert caught.value.code == "expired"


@pytest.mark.parametrize("skew", [0, CLOCK_SKEW_MS])
def test_clocks_may_differ_a_little(skew):
    dated = msgspec.structs.replace(DESIRED, issued=NOW + skew, expires=NOW + HOUR)
    assert accept(dated) == dated
