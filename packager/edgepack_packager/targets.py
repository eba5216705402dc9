"""Device configs: what each kind of hardware offers, and whether this machine is one of them."""

from __future__ import annotations

import importlib.metadata
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

import edgepack_contract
from edgepack_contract.description import Budgets, Platform, Positive, Precision, Release
from edgepack_contract.hardware import FEATURES, Hardware, this_machine
from edgepack_contract.limits import LIMITS
from edgepack_contract.names import is_id
from edgepack_packager.errors import RecipeError

MOST_NAME = 55
"""An id has 63 characters, and a variant's may end in ``-alt12`` or ``-fp32``."""

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""Features without which int8 multiply-adds of U8S8 saturate on amd64."""

_SPEED = VNNI | {"x86-64-v3", "x86-64-v4", "asimddp", "i8mm", "sve2"}
"""Features that change which kernels run, and with them every timing."""


class ConfigProvenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the figures of a device config come from.

    ``measured``: by edgepack on such a device; ``published``: by somebody else, see ``source``;
    ``not run``: nothing of it was checked on such a device.
    """

    status: Literal["measured", "published", "not run"]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of hardware.

    Attributes:
        schema: The version of this format.
        name: The name of the file, and of the variant that is built for it.
        title: One line for people.
        kind: ``board``: one product, recognised by ``model``; ``class``: machines with exactly
            these speed-relevant features; ``generic``: any machine of the architecture.
        architecture: OCI's name.
        features: The CPU features a variant for it may use, sorted.
        cores: Cores that a device has.
        memory_bytes: Memory that a device has.
        onnxruntime: The version of onnxruntime that devices run.
        threads: Threads of one session; 0 leaves it to the device.
        precision: Precisions in the order to prefer where timing was not possible.
        budgets: Budgets of every bundle for it, unless the recipe sets its own.
        provenance: Where all this comes from.
        model: Text that the device's own model name contains; only for a board.
        accelerators: Accelerators on the device and their state of support, for people.
    """

    schema: Literal["edgepack-device/1"]
    name: str
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    kind: Literal["board", "class", "generic"]
    architecture: Literal["amd64", "arm64"]
    features: list[str]
    cores: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    memory_bytes: Positive | None = None
    onnxruntime: Release
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    precision: Annotated[list[Precision], msgspec.Meta(min_length=1)]
    budgets: Budgets = Budgets()
    provenance: ConfigProvenance
    model: str | None = None
    accelerators: dict[str, str] = {}

    @property
    def platform(self) -> Platform:
        """The OCI platform of a variant for it."""
        return Platform(
            architecture=self.architecture,
            variant="v8" if self.architecture == "arm64" else None,
        )

    @property
    def needs_reduced_range(self) -> bool:
        """Whether 8-bit weights must keep to 7 bits.

        Without VNNI, onnxruntime's U8S8 kernels add pairs of products in saturating 16-bit
        registers (VPMADDUBSW), which full 8-bit weights overflow.
        """
        return self.architecture == "amd64" and not VNNI & set(self.features)

    def is_this(self, machine: Hardware) -> bool:
        """Whether a timing on ``machine`` is a timing of this kind of hardware."""
        features = set(machine.features)
        if machine.architecture != self.architecture or not features.issuperset(self.features):
            return False
        if self.kind == "board":
            return self.model is not None and self.model in machine.model
        return self.kind == "generic" or features & _SPEED == set(self.features) & _SPEED


def config_folder() -> Path:
    """The folder with the device configs: in the wheel, else in the checkout.

    Raises:
        RecipeError: Neither is there.
    """
    contract = Path(edgepack_contract.__file__).parent
    for folder in (contract / "device_configs", contract.parents[1] / "device-configs"):
        if folder.is_dir():
            return folder
    raise RecipeError("no device configs are installed; reinstall edgepack", code="no-configs")


def target_names() -> list[str]:
    """The names of all device configs, sorted."""
    return sorted(path.stem for path in config_folder().glob("*.toml"))


def load_target(name: str) -> DeviceConfig:
    """The device config called ``name``, or the one in a file of one's own: ``./my-board.toml``.

    Raises:
        RecipeError: There is none, or it is not valid.
    """
    if "/" in name or name.endswith(".toml"):
        return _read_target(Path(name))
    if name not in target_names():
        raise RecipeError(
            f"unknown target {name!r}; known are {', '.join(target_names())}; a file of your own "
            "is named by its path, ./NAME.toml",
            code="unknown-target",
        )
    return _read_target(config_folder() / f"{name}.toml")


def _read_target(path: Path) -> DeviceConfig:
    try:
        with path.open("rb") as stream:
            raw = stream.read(LIMITS.config_bytes)
    except OSError as error:
        raise RecipeError(
            f"cannot read device config {path}: {error.strerror}", code="unknown-target"
        ) from error
    return parse_target(raw, name=path.name.removesuffix(".toml"))


def parse_target(raw: bytes, *, name: str) -> DeviceConfig:
    """Decode and check one device config.

    Args:
        raw: TOML.
        name: The file's name without ``.toml``, which the config must repeat.

    Raises:
        RecipeError: Not TOML, or a field is unknown, missing or out of range.
    """
    try:
        config = msgspec.convert(tomllib.loads(raw.decode()), DeviceConfig)
    except (ValueError, msgspec.ValidationError) as error:
        raise RecipeError(f"device config {name}: {error}", code="bad-target") from error
    problem = _problem(config, name)
    if problem:
        raise RecipeError(f"device config {name}: {problem}", code="bad-target")
    return config


def _problem(config: DeviceConfig, name: str) -> str:
    unknown = sorted(set(config.features) - FEATURES)
    if config.name != name or not is_id(name):
        return f"its name is {config.name!r}; it must be the file's name and an id"
    if len(name) > MOST_NAME:
        return f"its name is longer than {MOST_NAME}, and alternatives add to it"
    if config.features != sorted(set(config.features)):
        return "features must be sorted and without repetition"
    if unknown:
        return f"unknown feature {', '.join(unknown)}"
    if len(set(config.precision)) != len(config.precision):
        return "a precision is listed twice"
    if (config.kind == "board") != (config.model is not None):
        return "a board, and only a board, is recognised by its model"
    return ""


@cache
def this_hardware() -> Hardware:
    """This machine, with the version of onnxruntime that is installed."""
    return this_machine(onnxruntime=importlib.metadata.version("onnxruntime"))


def jobs_here(asked: int | None) -> int:
    """How much to do side by side: what was asked for, else as much as there are cores."""
    return asked or this_hardware().cores


def own_class() -> DeviceConfig | None:
    """The class of machines that this one is exactly of."""
    configs = map(load_target, target_names())
    return next(
        (item for item in configs if item.kind == "class" and item.is_this(this_hardware())), None
    )


def default_target() -> str:
    """The class that this machine is of, else the generic target of its architecture."""
    kind = own_class()
    return f"generic-{this_hardware().architecture}" if kind is None else kind.name
