"""Whether a rollout could be taken back: said before it starts, from what devices run now.

A device's security floor rises to the new bundle's once that has succeeded there. What it ran
directly before stays installable for it (the recorded previous bundle), unless the owner has
revoked it; anything older below the floor does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHOWN = 5
"""How many devices a warning names."""

NO_MODEL = "cannot be rolled back: nothing runs there now, so that a bad model leaves no model"
REFUSED = "cannot be rolled back: what runs there now must not be installed again"
NOT_IN_STORE = (
    "can be rolled back only from what is on their own disks: the store has not got what runs "
    "there now"
)
RISES = (
    "can be rolled back only to what they run now, and to nothing older: their floor rises to "
    "security version {}"
)


@dataclass(frozen=True, slots=True)
class WayBack:
    """What one device runs now, and what is known about it.

    ``running`` is None when the slot is empty. ``security_version`` and ``refusal`` (why the
    keyring no longer lets it be installed) are of that bundle; a bundle that is not in the store
    has no security version here. ``floor`` is what the device reports for this bundle name.
    """

    device: str
    running: str | None = None
    version: str | None = None
    security_version: int | None = None
    refusal: str | None = None
    floor: int = 0


def below_floor(security_version: int, digest: str, ways: Sequence[WayBack]) -> dict[str, str]:
    """Why a device would refuse a bundle of this security version, by device."""
    return {
        way.device: f"it has run security version {way.floor} of this bundle and installs nothing "
        f"below it; this bundle has {security_version}"
        for way in ways
        if security_version < way.floor and way.running != digest
    }


def warnings(security_version: int, digest: str, ways: Sequence[WayBack]) -> list[str]:
    """What could not be undone, in words, one sentence a reason.

    Args:
        security_version: Of the bundle that is to be rolled out.
        digest: Its index digest.
        ways: The devices that it is for.
    """
    new = [way for way in ways if way.running != digest]
    rules: tuple[tuple[Callable[[WayBack], bool], str], ...] = (
        (lambda way: way.running is None, NO_MODEL),
        (lambda way: way.refusal is not None, REFUSED),
        (lambda way: way.security_version is None, NOT_IN_STORE),
        (lambda way: _raises(way, security_version), RISES.format(security_version)),
    )
    found = []
    for applies, words in rules:
        hit = [way for way in new if applies(way)]
        if hit:
            found.append(f"{_devices(hit)} {words}{_reasons(hit)}")
        new = [way for way in new if way not in hit]
    return found


def _raises(way: WayBack, security_version: int) -> bool:
    return way.security_version is not None and way.security_version < security_version


def _devices(ways: Sequence[WayBack]) -> str:
    names = ", ".join(way.device for way in ways[:SHOWN])
    more = f" and {len(ways) - SHOWN} more" if len(ways) > SHOWN else ""
    count = "1 device" if len(ways) == 1 else f"{len(ways)} devices"
    return f"{count} ({names}{more})"


def _reasons(ways: Sequence[WayBack]) -> str:
    reasons = sorted({way.refusal for way in ways if way.refusal})
    return f" ({'; '.join(reasons)})" if reasons else ""
