from __future__ import annotations

import json

import pytest

from edgepack_contract.dsse import PayloadType, open_envelope, pae, seal_envelope
from edgepack_contract.errors import MalformedDocumentError, UntrustedDocumentError
from edgepack_contract.keys import PrivateKey

ALICE, BOB, EVE = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
TRUSTED = {key.public.fingerprint: key.public for key in (ALICE, BOB)}


def opened(raw, *, payload_type=PayloadType.DESIRED, threshold=1):
    return open_envelope(
        raw, payload_type, TRUSTED, what="document", max_bytes=10_000, threshold=threshold
    )


def test_pae_is_the_one_of_the_specification():
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_trusted_signature_opens_it():
    assert opened(seal_envelope(PayloadType.DESIRED, b"body", ALICE)) == b"body"


def test_thresholds_count_distinct_keys():
    twice = seal_envelope(PayloadType.DESIRED, b"body", ALICE, ALICE)
    with pytest.raises(UntrustedDocumentError):
        opened(twice, threshold=2)
    assert opened(seal_envelope(PayloadType.DESIRED, b"body", ALICE, BOB), threshold=2) == b"body"


def test_a_stranger_is_named():
    with pytest.raises(UntrustedDocumentError, match=EVE.public.fingerprint[:16]) as caught:
        opened(seal_envelope(PayloadType.DESIRED, b"body", EVE))
    assert caught.value.code == "unknown-key"


def test_another_documents_signature_does_not_count():
    raw = seal_envelope(PayloadType.KEYRING, b"body", ALICE)
    with pytest.raises(MalformedDocumentError) as caught:
        opened(raw)
    assert caught.value.code == "wrong-type"
    forged = json.loads(raw)
    forged["payloadType"] = PayloadType.DESIRED.value
    with pytest.raises(UntrustedDocumentError) as refused:
        opened(json.dumps(forged).encode())
    assert refused.value.code == "bad-signature"


def test_every_altered_byte_is_noticed():
    raw = seal_envelope(PayloadType.DESIRED, b'{"a":1}', ALICE)
    for offset in range(len(raw)):
        altered = bytearray(raw)
        altered[offset] ^= 1
        try:
            assert opened(bytes(altered)) == b'{"a":1}'
        except (MalformedDocumentError, UntrustedDocumentError):
            continue
