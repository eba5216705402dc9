"""How much a device has yet to tell its fleet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much waits: ``items`` of ``bytes``, of which ``handed`` wait for the fleet's word only.

    ``dropped`` counts items lost for want of room since the spool was made.
    """

    items: int
    handed: int
    bytes: int
    dropped: int
