from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.errors import ConfigError, MalformedDocumentError
from edgepack_contract.topics import (
    NAMED,
    Kind,
    Topic,
    device_filters,
    device_topic,
    fleet_filters,
    parse_topic,
)

IDS = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


@given(IDS, IDS, st.sampled_from(Kind), IDS)
def test_round_trip(tenant, device, kind, name):
    used = name if kind in NAMED else None
    assert parse_topic(device_topic(tenant, device, kind, used)) == Topic(
        tenant, device, kind, used
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "edgepack/v1/default/pi-1",
        "edgepack/v2/default/pi-1/state",
        "edgepack/v1/default/pi-1/state/x",
        "edgepack/v1/default/pi-1/telemetry",
        "edgepack/v1/default/pi-1/nonsense",
        "edgepack/v1/default/+/state",
        "edgepack/v1/default/#",
        "edgepack/v1/default/_fleet/state",
        "edgepack/v1/default/PI/state",
        "edgepack/v1/default/pi-1/telemetry/../x",
        "edgepack/v1/default/pi-1/state\n",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(MalformedDocumentError) as caught:
        parse_topic(text)
    assert caught.value.code == "bad-topic"


@pytest.mark.parametrize("device", ["", "a/b", "+", "#", "A", "-a", "a-", "a" * 64, "a\n"])
def test_ids_cannot_smuggle_levels_or_wildcards(device):
    with pytest.raises(ConfigError):
        device_topic("default", device, Kind.STATE)


def test_the_fleet_hears_what_devices_say_and_a_device_only_itself():
    assert not any(f"/{kind}" in filt for filt in fleet_filters("t") for kind in ("desired", "cmd"))
    own = [filt for filt in device_filters("t", "pi-1") if "_fleet" not in filt]
    assert all(filt.startswith("edgepack/v1/t/pi-1/") for filt in own)
