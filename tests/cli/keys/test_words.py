"""Words that a person signs for: nothing that differs goes unsaid, and nothing can hide."""

from __future__ import annotations

import msgspec
import pytest
from bundle_samples import fixed_key
from hypothesis import given
from hypothesis import strategies as st

from edgepack_cli.keys.words import changes, date_text, describe
from edgepack_contract.certificates import Authority
from edgepack_contract.keyring import SCHEMA, Keyring, KeyStatus, Publisher

NOW = 1_800_000_000_000
PEMS = [fixed_key(number).public.pem.decode() for number in range(10, 16)]
PRINTS = [fixed_key(number).public.fingerprint for number in range(10, 16)]
AUTHORITIES = [
    Authority.create(fixed_key(number), name="x", now_ms=NOW).pem.decode() for number in (40, 41)
]
DIGESTS = ["sha256:" + one * 64 for one in "12"]
BASE = Keyring(
    schema=SCHEMA, version=7, epoch=3, issued=NOW, owners=PEMS[:3], threshold=2,
    publishers=[Publisher(key=PEMS[3], names=["digits"])], fleets=PEMS[4:5],
    authorities=AUTHORITIES[:1],
)  # fmt: skip


def subsets(values, least=0):
    return st.lists(st.sampled_from(values), min_size=least, unique=True).map(sorted)


publishers = st.lists(
    st.builds(
        Publisher, key=st.sampled_from(PEMS), names=subsets(["digits", "churn-*"]),
        status=st.sampled_from(KeyStatus), digests=subsets(DIGESTS),
    ),
    unique_by=lambda one: one.key, max_size=3,
).map(lambda found: sorted(found, key=lambda one: one.key))  # fmt: skip
keyrings = st.builds(
    Keyring, schema=st.just(SCHEMA), version=st.just(7), epoch=st.integers(1, 2),
    issued=st.just(NOW), owners=subsets(PEMS, least=1), threshold=st.integers(1, 2),
    publishers=publishers, fleets=subsets(PEMS), revoked_fleets=subsets(PRINTS),
    revoked_digests=subsets(DIGESTS), authorities=subsets(AUTHORITIES), demo=st.booleans(),
)  # fmt: skip


@given(keyrings, keyrings)
def test_nothing_that_differs_goes_without_a_line(before, after):
    lines = changes(before, after, {})
    assert (len(lines) == 1) == (before == after)


@given(keyrings, st.data())
def test_each_field_that_differs_has_a_line_of_its_own(before, data):
    after = data.draw(keyrings)
    field = data.draw(st.sampled_from([one.name for one in msgspec.structs.fields(Keyring)]))
    one = msgspec.structs.replace(before, **{field: getattr(after, field)})
    assert (len(changes(before, one, {})) > 1) == (one != before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epoch": 4}, "epoch 3 becomes 4"),
        ({"threshold": 1}, "1 of 3 owner keys must sign, no longer 2 of 3"),
        ({"owners": PEMS[:2]}, f"owner key {PRINTS[2]} (anna) is taken away"),
        ({"owners": PEMS[:4]}, f"owner key {PRINTS[3]} is added"),
        ({"fleets": []}, f"fleet key {PRINTS[4]} is taken away"),
        ({"revoked_fleets": PRINTS[4:5]}, f"revoked fleet key {PRINTS[4]} is added"),
        ({"revoked_digests": DIGESTS[:1]}, f"revoked bundle {DIGESTS[0]} is added"),
        ({"authorities": []}, "is taken away"),
        ({"demo": True}, "it is of a demo now"),
        (
            {"publishers": [Publisher(key=PEMS[3], names=["*"])]},
            f"publisher key {PRINTS[3]} may sign *",
        ),
        (
            {"publishers": [Publisher(key=PEMS[3], names=["digits"], status=KeyStatus.RETIRED)]},
            f"publisher key {PRINTS[3]} is no longer active, but retired",
        ),
    ],
)
def test_what_is_said(change, words):
    lines = changes(BASE, msgspec.structs.replace(BASE, **change), {PRINTS[2]: "anna"})
    assert words in "\n".join(lines)


@pytest.mark.parametrize("sly", ["digits\x1b[2K\x1b[1A", "a\nowner  none", "\u202etxt.*", "a\rb"])
def test_a_name_cannot_hide_or_move_text_on_a_terminal(sly):
    after = msgspec.structs.replace(
        BASE, publishers=[Publisher(key=PEMS[3], names=[sly])], revoked_digests=[sly]
    )
    for lines in (changes(BASE, after, {}), describe(after, {})):
        assert all(line.isprintable() for line in lines)


def test_every_key_is_described():
    text = "\n".join(describe(BASE, {PRINTS[0]: "owner-1"}))
    assert all(one in text for one in [*PRINTS[:5], "2 of these 3 keys sign", "owner-1", "epoch 3"])


def test_any_date_has_words():
    assert date_text(NOW) == "2027-01-15 08:00 UTC"
    assert date_text(2**53) == "after the year 9999"
