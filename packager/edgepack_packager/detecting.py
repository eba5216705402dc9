"""A device config of the machine that this runs on."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from edgepack_contract.description import Precision
from edgepack_contract.hardware import FEATURES, Hardware
from edgepack_contract.names import is_id
from edgepack_packager.errors import RecipeError
from edgepack_packager.targets import VNNI, ConfigProvenance, DeviceConfig

SOURCE = "read on such a machine by `edgepack targets detect`; nothing was timed"
_DOT = VNNI | {"asimddp", "i8mm"}


def detect_target(machine: Hardware, *, name: str | None, board: bool) -> DeviceConfig:
    """The device config of a machine: of a board when it is one, else of machines like it.

    Args:
        machine: What it reports of itself.
        name: The config's name; None makes one out of the machine's model.
        board: Whether ``machine.model`` names a product, which only such a board has.

    Raises:
        RecipeError: The name is no id.
    """
    chosen = name or _slug(machine.model)
    if not is_id(chosen):
        raise RecipeError(
            f"{chosen!r} cannot be the name of a target: use a-z, 0-9 and '-'", code="bad-target"
        )
    features = sorted(set(machine.features) & FEATURES)
    quick = bool(_DOT & set(features))
    order: list[Precision] = ["int8-static", "fp32"] if quick else ["fp32", "int8-static"]
    return DeviceConfig(
        schema="edgepack-device/1",
        name=chosen,
        title=f"{machine.model} ({machine.cores} cores)"[:200],
        kind="board" if board else "class",
        architecture="arm64" if machine.architecture == "arm64" else "amd64",
        features=features,
        cores=machine.cores,
        memory_bytes=machine.memory_bytes or None,
        onnxruntime=machine.onnxruntime,
        threads=max(1, machine.cores // 2),
        precision=[*order, "int8-dynamic"],
        provenance=ConfigProvenance(status="not run", source=SOURCE),
        model=machine.model if board else None,
    )


def to_toml(config: DeviceConfig) -> str:
    """A device config as the file that :func:`~edgepack_packager.targets.parse_target` reads."""
    plain = msgspec.to_builtins(config)
    tables = {name: value for name, value in plain.items() if isinstance(value, dict)}
    lines = [f"{name} = {_value(value)}" for name, value in plain.items()
             if name not in tables and value is not None]  # fmt: skip
    for name, table in tables.items():
        filled = [f"{key} = {_value(value)}" for key, value in table.items() if value is not None]
        lines += ["", f"[{name}]", *filled] if filled else []
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """Texts, whole numbers and lists of texts, which TOML writes as JSON does."""
    return json.dumps(value)


def _slug(model: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:63].strip("-")
    return words or "this-machine"
