"""All checks of a device, side by side."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from edgepack_contract.states import Phase
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.local.findings import Check, Finding, fail, ok, run_checks, warn
from edgepack_runtime.local.link_checks import check_broker, check_connection, check_fleet
from edgepack_runtime.local.machine_checks import (
    check_disk,
    check_memory,
    check_service,
    check_usage_data,
    check_versions,
)
from edgepack_runtime.local.trust_checks import check_clock, check_keys, check_security
from edgepack_runtime.local.view import DeviceView, SlotView
from edgepack_runtime.slot_runtime import now_ms

CHECK_SECONDS = 15.0


def examine(
    config: RuntimeConfig | None, state_dir: Path | None, view: DeviceView | None, lines: list[str]
) -> list[Finding]:
    """Check a device.

    Args:
        config: Its configuration; None when that cannot be read, and then less is checked.
        state_dir: Its state folder; None when that is not known.
        view: How it is, None when that cannot be seen.
        lines: The last log lines of its daemon.
    """
    checks: dict[str, Check] = {
        "versions": check_versions,
        "usage-data": partial(check_usage_data, os.environ),
        "memory": check_memory,
        "service": check_service,
    }
    if state_dir is not None:
        checks["disk"] = partial(check_disk, state_dir)
    if config is not None:
        checks |= {
            "security": partial(check_security, config),
            "keys": partial(check_keys, config, now_ms),
            "clock": partial(check_clock, config, now_ms),
            "broker": partial(check_broker, config, view, now_ms),
            "fleet": partial(check_fleet, config, now_ms),
        }
    if state_dir is not None:
        checks["connection"] = partial(check_connection, view, lines)
        checks["slots"] = partial(check_slots, view)
    return run_checks(checks, seconds=CHECK_SECONDS)


def check_slots(view: DeviceView | None) -> list[Finding]:
    """Whether every slot has a model that is what was wanted."""
    if view is None:
        return [warn("slots", "their records cannot be read", "run this as the daemon's user")]
    if not view.slots:
        return [ok("slots", "there is none yet")]
    return [_slot(one) for one in view.slots]


def _slot(slot: SlotView) -> Finding:
    check = f"slot {slot.name}"
    remedy = f"edgepack local why --slot {slot.name}"
    words = f"{slot.phase}: {slot.words}" if slot.words else str(slot.phase)
    if slot.phase == Phase.SAFE_MODE:
        return fail(check, words, remedy)
    if slot.phase in (Phase.FAILED, Phase.REJECTED, Phase.FELL_BACK):
        return warn(check, words, remedy)
    return ok(check, words)
