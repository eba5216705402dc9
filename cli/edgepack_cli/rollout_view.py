"""A rollout as text: stages, counts by state, gates with their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgepack_cli.output import table

NAMED = 8
"""How many devices are named where there may be thousands."""

MARKS = {
    "passed": "✔", "succeeded": "✔", "pass": "✔", "failed": "✘", "fail": "✘",
    "inconclusive": "?", "not_applicable": "-", "waiting": "·",
}  # fmt: skip


def render_rollout(rollout: Mapping[str, Any]) -> str:
    """The rollout as an indented tree."""
    head = (
        f"{rollout['id']}: {rollout['bundle']} {rollout['version']} to {rollout['group']} "
        f"is {rollout['state']}"
    )
    lines = [head]
    if rollout["reason"]:
        lines.append(f"  {rollout['reason']}")
    for stage in rollout["stages"]:
        lines += _stage(stage, rollout["updates"])
    return "\n".join(lines)


def render_plan(plan: Mapping[str, Any]) -> str:
    """A plan as text: who comes when, what is measured, who is left out, what cannot be undone."""
    rollout = plan["rollout"]
    stages = rollout["stages"]
    gates = stages[0]["gates"] if stages else []
    lines = [
        f"{rollout['bundle']} {rollout['version']} to {rollout['group']}:",
        *(
            f"  stage {one['index'] + 1} ({one['target']}): {_some(one['devices'])}"
            for one in stages
        ),
        *(
            f"  gate {one['gate']} does not apply: {one['words']}"
            for one in gates
            if one["verdict"] == "not_applicable"
        ),
        *(f"  left out: {device}: {why}" for device, why in sorted(plan["incompatible"].items())),
        *([f"  never heard of: {_some(plan['unheard'])}"] if plan["unheard"] else []),
        *(f"  warning: {words}" for words in plan["warnings"]),
    ]
    return "\n".join(lines)


def _some(devices: list[str]) -> str:
    more = f" and {len(devices) - NAMED} more" if len(devices) > NAMED else ""
    return f"{', '.join(devices[:NAMED])}{more}"


def _stage(stage: Mapping[str, Any], updates: Mapping[str, Any]) -> list[str]:
    states = Counter(updates[device]["state"] for device in stage["devices"] if device in updates)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    mark = MARKS.get(stage["state"], "▸")
    lines = [f"  {mark} stage {stage['index'] + 1} ({stage['target']}) {stage['state']}: {counts}"]
    shown = [gate for gate in stage["gates"] if stage["state"] != "waiting"]
    rows = [(f"    {MARKS.get(g['verdict'], '▸')} {g['gate']}", g["words"]) for g in shown]
    return lines + ([table_body(rows)] if rows else [])


def table_body(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns without headings."""
    return "\n".join(table(("", ""), rows).splitlines()[1:])
