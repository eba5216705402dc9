"""What the routes work with, made once by the composition root and found on the application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from edgepack_contract.gate import Waiver
from edgepack_fleet.api.origin import own_origins
from edgepack_fleet.bundles import BundleStore
from edgepack_fleet.config import FleetConfig
from edgepack_fleet.db.database import Database
from edgepack_fleet.desired import DesiredWriter
from edgepack_fleet.trust import KeyringKeeper


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of the service that the API uses.

    Attributes:
        config: The service's configuration.
        database: The open database.
        bundles: The bundle store.
        writer: What turns decisions into signed desired documents.
        keeper: The keyring in force, and what puts a newer one in force.
        wake: Says that there may be something to publish.
        now_ms: The time, milliseconds since 1970 UTC.
        is_stopping: Whether the service is shutting down, which ends the endless streams.
        counters: What the service counts, by name, for ``/metrics``.
        waiver: Why the service runs although it is insecure; None when it is secure.
        refused: How many messages on a device's topics were refused, by reason.
    """

    config: FleetConfig
    database: Database
    bundles: BundleStore
    writer: DesiredWriter
    keeper: KeyringKeeper
    wake: Callable[[], None]
    now_ms: Callable[[], int]
    is_stopping: Callable[[], bool]
    counters: Callable[[], dict[str, int]]
    waiver: Waiver | None = None
    refused: Callable[[str], dict[str, int]] = lambda _: {}

    @property
    def public_url(self) -> str:
        """Where browsers and devices reach the service, without a slash at the end."""
        return self.writer.base_url

    @property
    def origins(self) -> frozenset[str]:
        """The origins of the page."""
        return own_origins(self.public_url)


def context_of(request: Request) -> Context:
    """The context of the application that a request came to."""
    context = request.app.state.context
    if not isinstance(context, Context):
        raise TypeError("the application was not made by build_app")
    return context


Here = Annotated[Context, Depends(context_of)]
"""The type of a route's context parameter."""
