"""How often a client may ask: strict where secrets can be guessed, generous everywhere else.

A route that lets somebody in without credentials declares ``Annotated[str,
Depends(limited("enrol"))]`` behind its role; the value is the client's address. The general limit
and the one on failed authentication need no declaration: they are part of every role.
"""

from __future__ import annotations

import ipaddress
import math
import threading
from collections.abc import Callable
from typing import Literal, get_args

from fastapi import Request

from edgepack_fleet.api.clients import client_address, rate_key
from edgepack_fleet.api.context import context_of
from edgepack_fleet.api.problems import TooManyRequestsError
from edgepack_fleet.buckets import Buckets, Rate
from edgepack_fleet.config import HttpConfig

Door = Literal["login", "code", "enrol"]
"""The ways in that need no credentials; each is counted by itself."""

PER_ADDRESS = Rate(per_minute=10, burst=10)
ALL_TOGETHER = Rate(per_minute=300, burst=300)
FAILURES = Rate(per_minute=60, burst=60)
"""Requests with credentials that are not valid, per address."""

_EVERYBODY = ""


class Limiter:
    """The buckets of one application.

    Args:
        http: The configuration of the listener: the general limit, and the trusted proxies.
    """

    def __init__(self, http: HttpConfig) -> None:
        self._trusted = [ipaddress.ip_network(cidr) for cidr in http.trusted_proxies]
        self._lock = threading.Lock()
        self._doors = {door: Buckets(PER_ADDRESS) for door in get_args(Door)}
        self._together = {door: Buckets(ALL_TOGETHER, max_keys=1) for door in get_args(Door)}
        self._failures = Buckets(FAILURES)
        per_minute = http.requests_per_minute
        self._general = Buckets(Rate(per_minute, per_minute))

    def address(self, request: Request) -> str:
        """Where a request comes from."""
        peer = None if request.client is None else request.client.host
        return client_address(peer, request.headers.getlist("x-forwarded-for"), self._trusted)

    def enter(self, door: Door, address: str, now_ms: int) -> None:
        """Count a request at a door.

        Raises:
            TooManyRequestsError: Too many from this address, or from everybody.
        """
        self._take(self._doors[door], rate_key(address), now_ms, "from your address")
        self._take(self._together[door], _EVERYBODY, now_ms, "from everybody together")

    def failed(self, address: str, now_ms: int) -> None:
        """Count a request whose credentials were not valid.

        Raises:
            TooManyRequestsError: Too many from this address.
        """
        words = "with credentials that are not valid"
        self._take(self._failures, rate_key(address), now_ms, words)

    def request(self, key: str, now_ms: int) -> None:
        """Count a request of any kind.

        Raises:
            TooManyRequestsError: More than ``http.requests_per_minute`` of this caller.
        """
        self._take(self._general, key, now_ms, "of one caller (http.requests_per_minute)")

    def _take(self, buckets: Buckets, key: str, now_ms: int, words: str) -> None:
        with self._lock:
            wait = buckets.take(key, now_ms)
        if wait > 0:
            seconds = max(1, math.ceil(wait))
            raise TooManyRequestsError(
                f"too many requests {words}; try again in {seconds} s", retry_after=seconds
            )


def limiter_of(request: Request) -> Limiter:
    """The limiter of the application that a request came to."""
    limiter = request.app.state.limiter
    if not isinstance(limiter, Limiter):
        raise TypeError("the application was not made by build_app")
    return limiter


def limited(door: Door) -> Callable[[Request], str]:
    """The dependency that counts a request at ``door`` and gives the client's address."""

    def enter(request: Request) -> str:
        limiter = limiter_of(request)
        address = limiter.address(request)
        limiter.enter(door, address, context_of(request).now_ms())
        return address

    return enter
