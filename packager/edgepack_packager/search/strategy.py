"""Which candidates to try next, from what is known of those that were tried. Pure.

The order is by cost and promise: float and each precision as it usually works, then finer scales
and other calibrations where static int8 loses, then the nodes that do most harm handed back to
float (twice as many each time, then back to the fewest), and where it keeps its accuracy, more
operators in int8, so that fewer tensors are converted on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgepack_packager.quantize.calibration import CalibrationName
from edgepack_packager.quantize.operators import STATIC_TYPES, UNFOLDED_TYPES
from edgepack_packager.quantize.plan import FP32, Plan
from edgepack_packager.targets import DeviceConfig

MOST_PLANS = 40
"""A search ends here even without a time budget."""

BLOCKS = {"coarse": 128, "fine": 32}
"""Weights that share a scale: coarse ones are smaller, fine ones more accurate."""

COVERED_SHARE = 1.05
"""Of the size of static int8, within which another form makes mending it not worth the time."""

OTHER_CALIBRATIONS: tuple[CalibrationName, ...] = ("percentile-99.99", "entropy")

Standing = Literal["proven", "losing", "unsure", "beaten", "none"]
"""``losing``: something is lost that a finer candidate may keep. ``unsure``: nothing is lost, there
are too few rows to prove it, and no finer one would. ``beaten``: another that is proven is faster
by far, and will be than finer ones. ``none``: the model has no such form."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What is wanted for a target.

    Attributes:
        activations: ``uint8`` where kernels multiply U8 by S8, else ``int8``.
        reduce_range: Whether 8-bit weights must keep to 7 bits.
    """

    activations: Literal["uint8", "int8"]
    reduce_range: bool


@dataclass(frozen=True, slots=True)
class Material:
    """What the model offers.

    Attributes:
        judged: Whether there are rows to judge on; without, nothing but fp32 can be proven.
        static_nodes: Nodes that have a static int8 form.
        dynamic: Whether an operator gains by dynamic int8.
        convolutions: Whether there are some with constant weights.
        products: Whether there are matrix products with constant weights.
        grown: Operators that may join static int8, the safest first.
        stored: Whether there are weights that may be stored in fewer bits.
    """

    judged: bool
    static_nodes: int = 0
    dynamic: bool = False
    convolutions: bool = False
    products: bool = False
    grown: tuple[str, ...] = ()
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a plan that was tried: the share it loses, and its size."""

    plan: Plan
    standing: Standing
    loss: float = 0.0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Try:
    """Make and judge these; they may be worked on side by side."""

    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class Rank:
    """Find out which nodes do most harm under this plan."""

    plan: Plan


Step = Try | Rank | None


def aim_for(target: DeviceConfig) -> Aim:
    """What is wanted for ``target``."""
    return Aim(
        activations="uint8" if target.architecture == "amd64" else "int8",
        reduce_range=target.needs_reduced_range,
    )


def next_step(
    aim: Aim, material: Material, known: Sequence[Known], ranking: Sequence[str] | None
) -> Step:
    """The next step of the search; None when nothing is left that may be worth it.

    Args:
        aim: What is wanted.
        material: What there is to work on.
        known: Everything tried for this target, in order.
        ranking: The nodes of static int8, the one that does most harm first, once asked for.
    """
    if not known:
        return Try((FP32, *(_openings(aim, material) if material.judged else ())))
    if not material.judged or len(known) >= MOST_PLANS:
        return None
    if known[0].standing != "proven":
        return None  # float itself is outside, or not proven: nothing made of it will be
    tried = {item.plan: item for item in known}
    return (
        _half(material, tried)
        or _finer_weights(tried)
        or _static_step(aim, material, known, tried, ranking)
    )


def static_plan(aim: Aim) -> Plan:
    """Static int8 as it usually works."""
    return Plan(
        name="int8-static",
        precision="int8-static",
        activations=aim.activations,
        reduce_range=aim.reduce_range,
    )


def _openings(aim: Aim, material: Material) -> tuple[Plan, ...]:
    offered = (
        (static_plan(aim), material.static_nodes > 0),
        (_dynamic("int8-dynamic", aim), material.dynamic),
        *((plan, material.convolutions) for plan in _unfolded(aim)),
        (_weights("int8-weights"), material.products),
        (_weights("int4-weights"), material.products),
        (_STORED, material.stored),
    )
    return tuple(plan for plan, wanted in offered if wanted)


_STORED = Plan(name="int8-stored", precision="int8-weights")
_HALF = Plan(name="fp16", precision="fp16")


def _dynamic(name: str, aim: Aim, operators: tuple[str, ...] = ()) -> Plan:
    return Plan(
        name=name,
        precision="int8-dynamic",
        operators=operators,
        per_channel=True,
        reduce_range=aim.reduce_range,
    )


def _unfolded(aim: Aim) -> tuple[Plan, ...]:
    """Convolutions as matrix products; also by kernels that full 8-bit weights do not saturate."""
    usual = _dynamic("int8-dynamic-unfolded", aim, UNFOLDED_TYPES)
    return (usual, _exact(usual)) if aim.reduce_range else (usual,)


def _exact(plan: Plan) -> Plan:
    """The same with weights that use all 8 bits, and kernels that are slower but never saturate."""
    return msgspec.structs.replace(
        plan, name=f"{plan.name}-u8", weights="uint8", reduce_range=False
    )


def _half(material: Material, tried: Mapping[Plan, Known]) -> Step:
    """Halves, where weights stored in int8 are too coarse: as fast as float too, but larger."""
    stored = tried.get(_STORED)
    if not material.stored or _HALF in tried or stored is None:
        return None
    if stored.standing in {"proven", "beaten"}:
        return None
    return Try((_HALF,))


def _weights(precision: Literal["int8-weights", "int4-weights"], *, fine: bool = False) -> Plan:
    name = f"{precision}-fine" if fine else precision
    return Plan(name=name, precision=precision, block=BLOCKS["fine" if fine else "coarse"])


def _finer_weights(tried: Mapping[Plan, Known]) -> Step:
    """Smaller blocks where weights in few bits lose."""
    losing = [
        item.plan.precision
        for item in tried.values()
        if item.standing == "losing" and item.plan.block == BLOCKS["coarse"]
    ]
    plans = _untried([_weights(name, fine=True) for name in _WEIGHT_ONLY if name in losing], tried)
    return Try(plans) if plans else None


_WEIGHT_ONLY: tuple[Literal["int8-weights", "int4-weights"], ...] = ("int8-weights", "int4-weights")


def _static_step(
    aim: Aim,
    material: Material,
    known: Sequence[Known],
    tried: Mapping[Plan, Known],
    ranking: Sequence[str] | None,
) -> Step:
    base = static_plan(aim)
    first = tried.get(base)
    if first is None or first.standing in {"unsure", "beaten", "none"}:
        return None
    family = [item for item in known if item.plan.precision == "int8-static"]
    whole = [item for item in family if not item.plan.excluded]
    proven = [item for item in whole if item.standing == "proven"]
    if proven:
        return _growth(proven[0].plan, material, tried)
    futile = any(item.standing == "unsure" for item in whole)
    beaten = any(item.standing == "beaten" for item in family)
    if futile or beaten or _is_covered(first, known):
        return None
    finer = _untried(_finer(base, tried), tried)
    if finer:
        return Try(finer)
    least = min((item for item in whole if item.standing == "losing"), key=lambda item: item.loss)
    return _handing_back(least.plan, material, family, ranking)


def _is_covered(static: Known, known: Sequence[Known]) -> bool:
    """Whether another form that computes in int8 is proven, and no larger."""
    return any(
        item.plan.precision == "int8-dynamic"
        and item.standing == "proven"
        and item.size_bytes <= COVERED_SHARE * static.size_bytes
        for item in known
    )


def _finer(base: Plan, tried: Mapping[Plan, Known]) -> tuple[Plan, ...]:
    """A scale per channel first; other calibrations once that loses too."""
    channels = msgspec.structs.replace(base, name=f"{base.name}-per-channel", per_channel=True)
    if channels not in tried:
        return (channels,)
    others = tuple(
        msgspec.structs.replace(channels, name=f"{channels.name}-{name}", calibration=name)
        for name in OTHER_CALIBRATIONS
    )
    return (_exact(channels), *others) if base.reduce_range else others


def _growth(base: Plan, material: Material, tried: Mapping[Plan, Known]) -> Step:
    """All other operators in int8 too, or the safest half of them where those lose, and so on."""
    count = len(material.grown)
    while count and not base.operators:
        plan = msgspec.structs.replace(
            base,
            name=f"{base.name}-and-{count}-more",
            operators=(*STATIC_TYPES, *material.grown[:count]),
        )
        if plan not in tried:
            return Try((plan,))
        if tried[plan].standing == "proven":
            return None
        count //= 2
    return None


def _handing_back(
    base: Plan, material: Material, family: Sequence[Known], ranking: Sequence[str] | None
) -> Step:
    """Ever more of the most harmful nodes in float until it is proven, then fewer again."""
    nodes = material.static_nodes
    if nodes < 2:
        return None
    if ranking is None:
        return Rank(base)
    sizes = {len(item.plan.excluded): item.standing for item in family if item.plan.excluded}
    counts = _counts(sizes, nodes)
    return Try(tuple(_without(base, ranking, count) for count in counts)) if counts else None


def _counts(sizes: Mapping[int, Standing], nodes: int) -> tuple[int, ...]:
    """How many nodes to keep in float next, given how it went with other numbers of them."""
    proven = [size for size, standing in sizes.items() if standing == "proven"]
    if not proven:
        most = max(sizes, default=0)
        start = 2 * most or 1
        doubled = (min(count, nodes - 1) for count in (start, 2 * start))
        return tuple(sorted({count for count in doubled if count > most}))
    fewest = min(proven)
    below = max((size for size in sizes if size < fewest), default=0)
    return ((below + fewest) // 2,) if fewest - below > 1 else ()


def _without(base: Plan, ranking: Sequence[str], count: int) -> Plan:
    nodes = len(ranking)
    return msgspec.structs.replace(
        base,
        name=f"{base.name}-{nodes - count}-of-{nodes}",
        excluded=tuple(sorted(ranking[:count])),
    )


def _untried(plans: Sequence[Plan], tried: Mapping[Plan, Known]) -> tuple[Plan, ...]:
    return tuple(plan for plan in plans if plan not in tried)
