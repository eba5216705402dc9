"""Which settings a running daemon takes up, and a configuration that is printed and read again."""

from __future__ import annotations

import msgspec
import pytest

from edgepack_runtime.config import (
    BatchingConfig,
    DownloadConfig,
    IdentityConfig,
    LogConfig,
    MqttConfig,
    RegistryConfig,
    RuntimeConfig,
    ServeConfig,
    SlotConfig,
    TelemetryConfig,
    load_config,
    to_toml,
)
from edgepack_runtime.reloading import Changes, changes, in_force

IDENTITY = IdentityConfig(key="/k", mac_key="/m", keyring="/r", owner="a" * 64)
PLAIN = RuntimeConfig(
    device="pi-1", state_dir="/state", identity=IDENTITY, mqtt=MqttConfig(host="127.0.0.1")
)
SAFE = ServeConfig(tls_certificate="/c", tls_key="/k", token_file="/t")


def changed(before=PLAIN, **sections):
    return msgspec.structs.replace(before, **sections)


def test_nothing_changes_nothing():
    assert changes(PLAIN, PLAIN) == Changes((), ())
    assert in_force(PLAIN, PLAIN) == PLAIN


@pytest.mark.parametrize(
    ("before", "after", "now", "later"),
    [
        (PLAIN, changed(log=LogConfig(level="debug")), ("log.level",), ()),
        (PLAIN, changed(telemetry=TelemetryConfig(window_seconds=5)),
         ("telemetry.window_seconds",), ()),
        (PLAIN, changed(download=DownloadConfig(registries=[RegistryConfig(host="r")])),
         ("download.registries",), ()),
        (PLAIN, changed(serve=ServeConfig(port=9)), (), ("serve.port",)),
        (PLAIN, changed(mqtt=MqttConfig(host="b"), log=LogConfig(level="error")),
         ("log.level",), ("mqtt.host",)),
        (changed(serve=SAFE), changed(serve=msgspec.structs.replace(SAFE, token_file="/u")),
         ("serve.token_file",), ()),
        # a listener has no token, or has one, for as long as it listens
        (PLAIN, changed(serve=SAFE), (),
         ("serve.tls_certificate", "serve.tls_key", "serve.token_file")),
        (changed(slots={"a": SlotConfig(threads=2)}), changed(slots={"a": SlotConfig(threads=4)}),
         ("slots.a.threads",), ()),
        (PLAIN, changed(slots={"a": SlotConfig(threads=2)}), ("slots.a.threads",), ()),
        (PLAIN, changed(slots={"a": SlotConfig(by_mqtt=True)}), (), ("slots.a.by_mqtt",)),
        (PLAIN, changed(state_dir="/other", device="pi-2"), (), ("device", "state_dir")),
    ],
    ids=["level", "window", "list", "port", "both", "token", "token comes", "slot", "slot comes",
         "slot by mqtt", "who it is"],
)  # fmt: skip
def test_what_can_change_does_and_the_rest_is_named(before, after, now, later):
    found = changes(before, after)
    assert found == Changes(now, later)
    merged = in_force(before, after)
    assert changes(before, merged) == Changes(now, ())
    assert changes(merged, after) == Changes((), later)


def test_a_printed_configuration_says_the_same(tmp_path):
    config = changed(
        serve=SAFE,
        slots={"main": SlotConfig(threads=2, by_mqtt=True)},
        download=DownloadConfig(
            metered=['wwan0"\\'],
            registries=[RegistryConfig(host="r:5000", user="ü\x7f😀"), RegistryConfig(host="s")],
        ),
    )
    path = tmp_path / "device.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path, {}) == config
    assert "EDGEPACK" not in to_toml(config)


def test_a_slot_that_is_not_named_any_more_has_what_slots_have():
    before = changed(slots={"a": SlotConfig(threads=2, batching=BatchingConfig(rows=8))})
    assert in_force(before, PLAIN).slot("a") == SlotConfig()
