"""The HTTP application: every route, behind the shield, with errors as problems."""

from __future__ import annotations

from fastapi import FastAPI

from edgepack_contract import __version__
from edgepack_contract.loopback import is_loopback
from edgepack_fleet.api import (
    audit,
    bundles,
    devices,
    enrol,
    groups,
    join_tokens,
    keyring,
    login,
    metrics,
    openapi,
    people,
    pull,
    rollouts,
    site,
    stats,
    status,
    stream,
    tokens,
)
from edgepack_fleet.api.context import Context
from edgepack_fleet.api.cookies import is_secure
from edgepack_fleet.api.limits import Limiter
from edgepack_fleet.api.origin import LOOPBACK_NAMES, host_name
from edgepack_fleet.api.problems import install_problems
from edgepack_fleet.api.shield import Shield
from edgepack_fleet.config import HttpConfig

ROUTERS = (
    devices.router,
    enrol.router,
    join_tokens.router,
    groups.router,
    bundles.router,
    rollouts.router,
    stats.router,
    stream.router,
    tokens.router,
    keyring.router,
    audit.router,
    people.router,
    login.router,
    status.router,
    metrics.router,
    openapi.router,
    pull.router,
    site.router,
)


def build_app(context: Context) -> FastAPI:
    """The application of one service.

    Args:
        context: What the routes work with.
    """
    app = FastAPI(
        title="edgepack fleet",
        version=__version__,
        # the framework's own pages load scripts from the internet; the document is a route of ours
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # given as they are, so that `app.routes` is the complete list of what can be reached
        routes=[route for router in ROUTERS for route in router.routes],
    )
    app.state.context = context
    app.state.desk = login.LoginDesk()
    app.state.limiter = Limiter(context.config.http)
    app.state.feed = stream.Feed(context)
    install_problems(app)
    http = context.config.http
    app.add_middleware(Shield, hosts=accepted_hosts(http), secure=is_secure(http))
    return app


def accepted_hosts(http: HttpConfig) -> frozenset[str] | None:
    """The host names that a loopback listener answers to; None for any other listener.

    A page that makes its own name resolve to 127.0.0.1 sends that name; nothing else does.
    """
    if http.unix is None and not is_loopback(http.host):
        return None
    public = {host_name(http.public_url.partition("://")[2])} if http.public_url else set()
    return LOOPBACK_NAMES | {http.host} | public
