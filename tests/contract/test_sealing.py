from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.canonical import canonical_json
from edgepack_contract.errors import MalformedDocumentError, UntrustedDocumentError
from edgepack_contract.sealing import derived_secret, seal, unseal

KEY, OTHER = b"k" * 32, b"o" * 32
TOPIC = "edgepack/v1/default/pi-1/reported"


def unsealed(raw, *, topic=TOPIC, key=KEY):
    return unseal(raw, topic=topic, key=key, max_bytes=10_000)


@given(st.dictionaries(st.text(), st.text() | st.integers(), min_size=1))
def test_round_trip(value):
    body = canonical_json(value)
    assert unsealed(seal(body, topic=TOPIC, key=KEY)) == body


def test_forged_altered_moved_and_truncated_messages_are_refused():
    sealed = seal(b'{"session":7,"sequence":1}', topic=TOPIC, key=KEY)
    for raw, changes in (
        (sealed, {"key": OTHER}),
        (sealed, {"topic": TOPIC.replace("pi-1", "pi-2")}),
        (sealed.replace(b"7", b"8"), {}),
    ):
        with pytest.raises(UntrustedDocumentError) as caught:
            unsealed(raw, **changes)
        assert caught.value.code == "bad-mac"
    for raw in (sealed[:-1], b"{}", b"", b"null", b'{"session":7}', sealed + b" "):
        with pytest.raises(MalformedDocumentError):
            unsealed(raw)
    with pytest.raises(MalformedDocumentError) as large:
        unsealed(b"{" + b" " * 10_000)
    assert large.value.code == "too-large"


@pytest.mark.parametrize("body", [b"{}", b"[]", b"1", b""])
def test_only_an_object_can_be_sealed(body):
    with pytest.raises(ValueError, match="object"):
        seal(body, topic=TOPIC, key=KEY)


def test_derived_secrets_differ_by_purpose_and_device():
    assert (
        len({derived_secret(KEY, "pull"), derived_secret(KEY, "x"), derived_secret(OTHER, "pull")})
        == 3
    )
