"""``edgepack diff``: what changed between two bundles?"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from edgepack_cli.output import bytes_text, emit_json, say
from edgepack_contract.description import MODEL_DATA_PATH, MODEL_PATH
from edgepack_contract.unpacked import open_local
from edgepack_packager.diffing import BundleDiff, Change, VariantDiff, diff_bundles

BUNDLE = click.Path(path_type=Path, exists=True)
MODELS = (MODEL_PATH, MODEL_DATA_PATH)
DIFFERENT = 1
COLUMNS = 100
_WIDEST = 28


@click.command()
@click.argument("before", type=BUNDLE)
@click.argument("after", type=BUNDLE)
@click.option("--exit-code", is_flag=True, help="Exit with 1 when they differ, as git diff does.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(before: Path, after: Path, *, exit_code: bool, as_json: bool) -> int:
    """Show what changed from the bundle BEFORE to the bundle AFTER; checks no signature.

    Either may be a .edgepack file, or the folder that edgepack unpack wrote. Metrics come with
    their intervals; for every variant it says how many bytes of it a device with BEFORE lacks.

    Example: edgepack diff churn-1.4.0.edgepack churn-1.5.0.edgepack
    """
    with open_local(before) as one, open_local(after) as two:
        found = diff_bundles(one, two)
    if as_json:
        emit_json(found)
    else:
        say("\n".join(_lines(found)))
    return DIFFERENT if exit_code and not found.equal else 0


def _lines(diff: BundleDiff) -> Iterator[str]:
    one, two = diff.before, diff.after
    if diff.equal:
        yield f"{one['name']} {one['version']} twice: {one['digest']}"
        return
    yield f"- {one['name']} {one['version']}  {one['digest']}"
    yield f"+ {two['name']} {two['version']}  {two['digest']}"
    for change in diff.changes:
        if change.what not in {"name", "version"}:
            yield f"  {change.what}: {change.before} -> {change.after}"
    for name, found in diff.variants.items():
        yield from _variant(name, found)
    for name, size in diff.added.items():
        yield f"\n+ variant {name}\n  a device fetches {bytes_text(size)}"
    for name in diff.removed:
        yield f"\n- variant {name}"


def _variant(name: str, diff: VariantDiff) -> Iterator[str]:
    yield f"\nvariant {name}"
    if not diff.files:
        yield "  the same in every byte"
        return
    rows = [
        (change.what.removesuffix(" against source"), _spelt(change)) for change in diff.changes
    ]
    rows.append(("weights", _tensors(diff)))
    rows.append(("files", ", ".join(diff.files)))
    fetched = f"{bytes_text(diff.bytes)}, of which {bytes_text(diff.new_bytes)} are new"
    rows.append(("a device fetches", fetched))
    width = min(_WIDEST, max(len(what) for what, _ in rows))
    for what, words in rows:
        yield textwrap.fill(
            words, COLUMNS, initial_indent=f"  {what.ljust(width)}  ",
            subsequent_indent=" " * (width + 4), break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip


def _tensors(diff: VariantDiff) -> str:
    found = diff.tensors
    if not set(diff.files) & set(MODELS):
        return "the same"
    if not found.total:
        return "other ones, in attributes of nodes as trees have them"
    parts = [
        f"{found.changed} of {found.total} tensors changed",
        *([f"{found.added} added"] if found.added else []),
        *([f"{found.removed} removed"] if found.removed else []),
    ]
    return f"{', '.join(parts)}: {found.share:.1%} of the bytes of the weights"


def _spelt(change: Change) -> str:
    kind = change.what.partition(".")[0]
    old, new = change.before, change.after
    if isinstance(old, list) and isinstance(new, list):
        return _lists(old, new)
    if kind in {"inputs", "outputs"} and old is not None and new is not None:
        return _tensor_change(old, new)
    words: dict[str, Callable[[Any], str]] = {
        "metrics": _metric,
        "gates": _gate,
        "inputs": _tensor,
        "outputs": _tensor,
    }
    spell = words.get(kind, _plain)
    if old is None:
        return f"+ {spell(new)}"
    if new is None:
        return f"- {spell(old)}"
    return f"{spell(old)} -> {spell(new)}"


def _lists(old: list[Any], new: list[Any]) -> str:
    gone = [_plain(item) for item in old if item not in new]
    come = [_plain(item) for item in new if item not in old]
    parts = [f"- {', '.join(gone)}"] * bool(gone) + [f"+ {', '.join(come)}"] * bool(come)
    return "; ".join(parts) or "in another order"


def _tensor_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    parts = [] if _tensor(old) == _tensor(new) else [f"{_tensor(old)} -> {_tensor(new)}"]
    parts += [
        f"{key} {_lists(old[key] or [], new[key] or [])}"
        for key in ("features", "labels")
        if old[key] != new[key]
    ]
    parts += [
        f"{key} {old[key]} -> {new[key]}"
        for key in ("role", "kind", "source")
        if old[key] != new[key]
    ]
    return "; ".join(parts)


def _tensor(spec: Mapping[str, Any]) -> str:
    return f"{spec['dtype']}[{', '.join(str(size) for size in spec['shape'])}]"


def _metric(metric: Mapping[str, Any]) -> str:
    interval = f"{metric['low']:.4g} to {metric['high']:.4g}"
    return f"{metric['value']:.4g} ({interval}, n = {metric['n']})"


def _gate(gate: Mapping[str, Any]) -> str:
    limit = f"{gate['threshold']:g} {gate['unit']}"
    if gate["unit"] == "bytes":
        limit = bytes_text(gate["threshold"])
    return f"{limit}: {gate['verdict'].replace('_', ' ')}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items() if part != [])
    if isinstance(value, list):
        return ", ".join(_plain(part) for part in value)
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)
