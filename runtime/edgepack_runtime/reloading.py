"""Which settings a running daemon can change: pure.

What is not here is said by name when it changed, and takes a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from edgepack_runtime.config import RuntimeConfig

LIVE = (
    "capture",
    "download",
    "log",
    "serve.tls_certificate",
    "serve.tls_key",
    "serve.token_file",
    "telemetry.window_seconds",
    "telemetry.health_seconds",
)
"""A setting, or a table with all that is in it."""

LIVE_OF_SLOTS = ("threads", "batching")
"""What can change of every slot; it counts from the next model on that is loaded there."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The settings that differ, by name: those that change now, and those that wait."""

    now: tuple[str, ...]
    later: tuple[str, ...]


def changes(before: RuntimeConfig, after: RuntimeConfig) -> Changes:
    """Compare two configurations."""
    old, new = _flat(_naming(before, after)), _flat(_naming(after, before))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    now = [name for name in names if _is_live(name) and not _comes_or_goes(name, old, new)]
    return Changes(tuple(now), tuple(name for name in names if name not in now))


def in_force(before: RuntimeConfig, after: RuntimeConfig) -> RuntimeConfig:
    """What holds after a reload: the new where it can change, the old elsewhere."""
    merged: dict[str, Any] = msgspec.to_builtins(_naming(before, after))
    new = _flat(_naming(after, before))
    for name in changes(before, after).now:
        *tables, key = name.split(".")
        table = merged
        for one in tables:
            table = table.setdefault(one, {})
        table[key] = new.get(name)
    return msgspec.convert(merged, RuntimeConfig)


def _naming(config: RuntimeConfig, other: RuntimeConfig) -> RuntimeConfig:
    """The same, with the slots that the other names: what is not said of a slot is its default."""
    slots = {name: config.slot(name) for name in (*config.slots, *other.slots)}
    return msgspec.structs.replace(config, slots=slots)


def _is_live(name: str) -> bool:
    table, *_, key = (*name.split(".", 2), "")[:3]
    if table == "slots":
        return key.split(".")[0] in LIVE_OF_SLOTS
    return any(name == one or name.startswith(f"{one}.") for one in LIVE)


def _comes_or_goes(name: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """A listener has TLS or a token, or has not, for as long as it listens."""
    return name.startswith("serve.") and (old.get(name) is None) != (new.get(name) is None)


def _flat(config: RuntimeConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(table: dict[str, Any], before: str) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                walk(value, f"{before}{key}.")
            else:
                flat[before + key] = value

    walk(msgspec.to_builtins(config), "")
    return flat
