from __future__ import annotations

import pytest

from edgepack_contract.errors import (
    MalformedDocumentError,
    UntrustedBundleError,
    UntrustedDocumentError,
)
from edgepack_contract.keyring import KeyStatus, Publisher, make_keyring, open_keyring
from edgepack_contract.keys import PrivateKey

OWNER, PUBLISHER, FLEET = (PrivateKey.generate() for _ in range(3))
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
)
def test_who_may_not_sign_what(keyring, ask, code):
    with pytest.raises(UntrustedBundleError) as caught:
        vouch(keyring, **ask)
    assert caught.value.code == code


def test_a_retired_key_stays_good_for_what_it_lists():
    assert vouch(ring(publisher(status=KeyStatus.RETIRED, digests=[DIGEST])))
