"""Joining: the join string, and renewals that only the device's own key can ask for."""

from __future__ import annotations

import msgspec
import pytest
from bundle_samples import fixed_key
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.canonical import canonical_json
from edgepack_contract.dsse import PayloadType, seal_envelope
from edgepack_contract.enrolment import (
    Renewal,
    open_renewal,
    parse_join_string,
    renewal_due_ms,
    sign_renewal,
)
from edgepack_contract.errors import ConfigError, DocumentError

OWNER, TOKEN = "0a" * 32, "epj_" + "x" * 43
KEY, OTHER = fixed_key(1), fixed_key(2)
RENEWAL = Renewal(tenant="default", device="pi-1", enrolment=KEY.public.fingerprint, nonce="n")


@pytest.mark.parametrize(
    "url",
    ["https://fleet", "https://fleet:8443", "https://10.0.0.1", "https://[::1]:8443",
     "http://127.0.0.1:8080", "http://localhost", "http://[::1]:1"],
)  # fmt: skip
def test_join_strings_round_trip(url):
    text = f"{url}#{OWNER}:{TOKEN}"
    join = parse_join_string(f"  {text}\n")
    assert (join.url, join.owner, join.token) == (url, OWNER, TOKEN)
    assert str(join) == text
    assert str(parse_join_string(f"{url}/#{OWNER}:{TOKEN}")) == text


@pytest.mark.parametrize(
    "text",
    ["", "#", "https://fleet", f"https://fleet#{OWNER}", f"https://fleet#{TOKEN}:{OWNER}",
     f"https://fleet#{OWNER[:-1]}:{TOKEN}", f"https://fleet#{OWNER.upper()}:{TOKEN}",
     f"https://fleet#{OWNER}:{TOKEN[4:]}", f"https://fleet#{OWNER}:epj_short",
     f"https://fleet#{OWNER}:{TOKEN} x", f"https://#{OWNER}:{TOKEN}", f"fleet#{OWNER}:{TOKEN}",
     f"https://fleet:0#{OWNER}:{TOKEN}", f"https://fleet:99999#{OWNER}:{TOKEN}",
     f"https://fleet/path#{OWNER}:{TOKEN}", f"https://fleet?q=1#{OWNER}:{TOKEN}",
     f"https://[::1#{OWNER}:{TOKEN}", f"ftp://127.0.0.1#{OWNER}:{TOKEN}",
     f"https://anna:secret@fleet#{OWNER}:{TOKEN}", f"https://fleet?#{OWNER}:{TOKEN}",
     f"https://fl\neet#{OWNER}:{TOKEN}"],
)  # fmt: skip
def test_other_forms_are_refused_without_repeating_the_token(text):
    with pytest.raises(ConfigError, match="join string") as caught:
        parse_join_string(text)
    assert caught.value.code == "bad-join"
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("host", ["fleet", "10.0.0.1", "0.0.0.0", "127.0.0.1.example.org"])
def test_plain_http_stays_on_this_machine(host):
    with pytest.raises(ConfigError, match="https"):
        parse_join_string(f"http://{host}#{OWNER}:{TOKEN}")


@given(st.text(max_size=80))
def test_any_text_is_a_join_string_or_is_refused(text):
    with pytest.raises(ConfigError):
        parse_join_string(text)


def test_a_renewal_is_of_the_key_that_enrolled():
    raw = sign_renewal(RENEWAL, KEY)
    assert open_renewal(raw, KEY.public) == RENEWAL
    for forged in (
        sign_renewal(RENEWAL, OTHER),
        sign_renewal(msgspec.structs.replace(RENEWAL, device="pi-2"), OTHER),
        seal_envelope(PayloadType.DESIRED, canonical_json(RENEWAL), KEY),
        raw[:-1],
        b"",
        b" " * 300_000,
    ):
        with pytest.raises(DocumentError):
            open_renewal(forged, KEY.public)


def test_a_certificate_is_renewed_at_two_thirds_of_its_life():
    assert renewal_due_ms(0, 90) == 60
    assert renewal_due_ms(1000, 1000) == 1000
