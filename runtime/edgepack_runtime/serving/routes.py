"""Which path is what: one table for every way in. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Method = Literal["GET", "POST"]


class Endpoint(Enum):
    """What is answered, each with the method it takes."""

    PAGE = "page", "GET"
    HEALTH = "health", "GET"
    READY = "ready", "GET"
    METRICS = "metrics", "GET"
    DOCS = "docs", "GET"
    OPENAPI = "openapi", "GET"
    MODEL_INFO = "model_info", "GET"
    PREDICT_ROW = "predict_row", "POST"
    PREDICT_ROWS = "predict_rows", "POST"
    V1_MODELS = "v1_models", "GET"
    V1_MODEL = "v1_model", "GET"
    V1_PREDICT = "v1_predict", "POST"
    V2_SERVER = "v2_server", "GET"
    V2_LIVE = "v2_live", "GET"
    V2_READY = "v2_ready", "GET"
    V2_ALL_STATS = "v2_all_stats", "GET"
    V2_METADATA = "v2_metadata", "GET"
    V2_MODEL_READY = "v2_model_ready", "GET"
    V2_CONFIG = "v2_config", "GET"
    V2_STATS = "v2_stats", "GET"
    V2_INFER = "v2_infer", "POST"
    V2_INDEX = "v2_index", "POST"
    V2_LOAD = "v2_load", "POST"
    V2_UNLOAD = "v2_unload", "POST"

    def __init__(self, _name: str, method: Method) -> None:
        self.method: Method = method

    # each is the only one of its kind; Enum's own hash is a call in Python, in every request
    __hash__ = object.__hash__

    @property
    def allow(self) -> str:
        """The methods, as in an Allow header."""
        return "GET, HEAD, OPTIONS" if self.method == "GET" else "POST, OPTIONS"


@dataclass(frozen=True, slots=True)
class Route:
    """A path that leads somewhere; ``model`` is empty where the path names none."""

    endpoint: Endpoint
    model: str = ""
    version: str | None = None


_FIXED = {
    "/": Endpoint.PAGE,
    "/health": Endpoint.HEALTH,
    "/ready": Endpoint.READY,
    "/metrics": Endpoint.METRICS,
    "/docs": Endpoint.DOCS,
    "/openapi.json": Endpoint.OPENAPI,
    "/model/info": Endpoint.MODEL_INFO,
    "/predict": Endpoint.PREDICT_ROW,
    "/predict/batch": Endpoint.PREDICT_ROWS,
    "/v1/models": Endpoint.V1_MODELS,
    "/v2": Endpoint.V2_SERVER,
    "/v2/health/live": Endpoint.V2_LIVE,
    "/v2/health/ready": Endpoint.V2_READY,
    "/v2/models/stats": Endpoint.V2_ALL_STATS,
    "/v2/repository/index": Endpoint.V2_INDEX,
}
_V1 = re.compile(r"/v1/models/(?P<model>[^/:]+)(?P<verb>:predict)?")
_V2 = re.compile(
    r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>[a-z]+))?"
)
_V2_VERBS = {
    None: Endpoint.V2_METADATA,
    "ready": Endpoint.V2_MODEL_READY,
    "config": Endpoint.V2_CONFIG,
    "stats": Endpoint.V2_STATS,
    "infer": Endpoint.V2_INFER,
}
_REPOSITORY = re.compile(r"/v2/repository/models/(?P<model>[^/]+)/(?P<verb>load|unload)")


def find_route(path: str) -> Route | None:
    """Where a path leads, without its query; None for nowhere."""
    fixed = _FIXED.get(path)
    if fixed is not None:
        return Route(fixed)
    if match := _V2.fullmatch(path):
        verb = _V2_VERBS.get(match["verb"])
        return Route(verb, match["model"], match["version"]) if verb else None
    if match := _V1.fullmatch(path):
        return Route(Endpoint.V1_PREDICT if match["verb"] else Endpoint.V1_MODEL, match["model"])
    if match := _REPOSITORY.fullmatch(path):
        loads = match["verb"] == "load"
        return Route(Endpoint.V2_LOAD if loads else Endpoint.V2_UNLOAD, match["model"])
    return None
