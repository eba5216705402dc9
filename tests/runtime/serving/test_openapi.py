"""The OpenAPI document, and schemathesis, which holds the server to it."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from edgepack_runtime.serving.routes import Endpoint, find_route

SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "schemathesis"


@pytest.fixture(scope="module")
def document(shared):
    return shared.ask("GET", "/openapi.json").json


def test_every_endpoint_is_in_it_and_nothing_else(document):
    routes = {}
    for path, methods in document["paths"].items():
        filled = path.replace("{model_name}", "pump").replace("{version}", "1.0.0")
        route = find_route(filled)
        assert route is not None, path
        assert [method.upper() for method in methods] == [route.endpoint.method]
        routes[path] = route.endpoint
    assert set(routes.values()) == set(Endpoint)


def test_its_examples_are_answered(shared, document):
    for path, methods in document["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for example in body.get("application/json", {}).get("examples", {}).values():
            filled = path.replace("{model_name}", "pump").replace("{version}", "1.0.0")
            answer = shared.ask("POST", filled, example["value"])
            assert answer.status == 200, (path, answer.raw)


def test_the_page_shows_it_without_scripts_or_network(shared, document):
    answer = shared.ask("GET", "/docs")
    page = answer.raw.decode()
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=['\"]?(?:https?:)?//", page)
    assert all(path in page for path in document["paths"])
    assert "&quot;temperature&quot;: 0.0" in page


def test_references_lead_somewhere(document):
    text = json.dumps(document)
    for kind, name in re.findall(r'"#/components/(\w+)/(\w+)"', text):
        assert name in document["components"][kind]


def test_schemathesis_finds_nothing(shared, tmp_path):
    # what unloads the model has its own test; a schema cannot say which rows a model takes
    done = subprocess.run(
        [
            SCHEMATHESIS, "run", f"http://127.0.0.1:{shared.server.port}/openapi.json",
            "--checks", "all", "--exclude-checks", "positive_data_acceptance",
            "--phases", "examples,coverage",
            "--exclude-path-regex", "unload", "--generation-deterministic", "--no-color",
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    cases = re.search(r"(\d+) generated", done.stdout)
    assert cases is not None
    assert int(cases[1]) > 300
