"""Which device comes when: a seeded order of which every beginning is a fair sample.

One total order is made once, and a stage is a prefix of it, so that a device once inside stays
inside however far a later stage widens.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from edgepack_fleet.errors import InvalidRequestError

_COUNT = re.compile(r"\A[1-9][0-9]{0,8}\Z")
_PERCENT = re.compile(r"\A([0-9]{1,3}(?:\.[0-9]{1,4})?) ?%\Z")


def stratified_order(classes: Mapping[str, str], seed: str) -> list[str]:
    """Order devices so that every prefix holds the hardware classes in proportion.

    The first of each class lead, the largest class first: a prefix with room for every class holds
    every class. Behind them the j-th of s devices of a class stands at (j + 1/2) / s, which is
    systematic sampling within each class. Within a class the order is by hash of seed and device,
    so that nobody chooses who is a canary, and everybody can check.

    Args:
        classes: Hardware class by device.
        seed: Another seed gives another order.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for device in sorted(classes, key=lambda device: lot(seed, device)):
        members[classes[device]].append(device)
    leaders = sorted(members, key=lambda name: (-len(members[name]), lot(seed, name)))
    keyed = [((0.0, rank), members[name][0]) for rank, name in enumerate(leaders)]
    keyed += [
        (((place + 0.5) / len(members[name]), rank), members[name][place])
        for rank, name in enumerate(leaders)
        for place in range(1, len(members[name]))
    ]
    return [device for _, device in sorted(keyed)]


def lot(seed: str, name: str) -> bytes:
    """The lot that a name draws under a seed."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def stage_sizes(targets: Sequence[str], devices: int) -> list[tuple[str, int]]:
    """How many devices each stage reaches, all before it included; the last one reaches all.

    A target is a count (``5``) or a share (``10%``, rounded up). Stages that would add nobody are
    left out, and one for everybody left is added when the last target stops short.

    Raises:
        InvalidRequestError: A target is neither, or reaches less than the one before it.
    """
    sizes: list[tuple[str, int]] = []
    for target, size in zip(targets, _sizes(targets, devices), strict=True):
        if size > (sizes[-1][1] if sizes else 0):
            sizes.append((target, size))
    if devices and (not sizes or sizes[-1][1] < devices):
        sizes.append(("100%", devices))
    return sizes


def _sizes(targets: Sequence[str], devices: int) -> list[int]:
    shares: list[float] = []
    counts: list[float] = []
    result: list[int] = []
    for target in targets:
        percent = _PERCENT.match(target.strip())
        if percent is not None and 0.0 < float(percent.group(1)) <= 100.0:
            _check_growing(shares, float(percent.group(1)), target)
            # the tiny step back keeps 10 % of 10 from being 2 where the product is 1.0000000000002
            size = math.ceil(devices * float(percent.group(1)) / 100.0 - 1e-9)
        elif _COUNT.match(target.strip()):
            _check_growing(counts, int(target), target)
            size = int(target)
        else:
            raise InvalidRequestError(
                f"stage {target[:40]!r} is neither a number of devices such as 5 nor a share such "
                "as 10% (above 0, at most 100)",
                code="bad-stages",
            )
        result.append(max([*result[-1:], min(size, devices)]))
    return result


def _check_growing(before: list[float], value: float, target: str) -> None:
    if before and value <= before[-1]:
        raise InvalidRequestError(
            f"stage {target!r} reaches no more than the one before it; stages are cumulative, "
            "such as 1, 10%, 100%",
            code="bad-stages",
        )
    before.append(value)
