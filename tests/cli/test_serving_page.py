"""docs/serving.md runs as it stands, but for its port, against a served bundle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from world_bundles import tiny_bundle
from world_process import running

from edgepack_contract.description import TensorSpec
from edgepack_runtime.serving.openapi import ERRORS
from edgepack_runtime.serving.routes import find_route

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| (GET|POST) \| `([^`]+)` \|", PAGE, re.MULTILINE)


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    bundle = folder / "sample.edgepack"
    taken = TensorSpec(name="x", dtype="float32", shape=["n", 4], features=list("abcd"))
    tiny_bundle(bundle, "1.0.0", name="sample", inputs=[taken])
    arguments = ("run", "--bundle", bundle, "--port", "0", "--grpc-port", "0")
    with running(folder / "log", "edgepack_cli", *arguments) as process:
        port = process.port()
        (calls,) = re.findall(r"gRPC on port (\d+)", process.said)
        yield (
            folder,
            {"127.0.0.1:8000": f"127.0.0.1:{port}", "127.0.0.1:8001": f"127.0.0.1:{calls}"},
        )


def run(command, served):
    folder, places = served
    for written, place in places.items():
        command = [part.replace(written, place) for part in command]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ,
    )  # fmt: skip


@pytest.mark.foreign("curl")
def test_its_commands_run(served):
    done = run(["bash", "-c", "set -eu\n" + "\n".join(blocks("sh"))], served)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"predictions"') == 3
    assert 'edgepack_requests_total{slot="sample"}' in done.stdout
    answer = (served[0] / "answer.bin").read_bytes()
    end = answer.index(b"]}") + 2
    (output,) = json.loads(answer[:end])["outputs"]
    assert output["shape"] == [2, 3]
    assert np.frombuffer(answer[end:], np.float32).reshape(2, 3).sum() == pytest.approx(2)


@pytest.mark.parametrize("program", blocks("python"), ids=["http", "grpc"])
def test_its_programs_run(served, program):
    done = run([sys.executable, "-c", program], served)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_its_endpoints_are_those_there_are():
    found = [(find_route(path.replace("M", "m")), method) for method, path in TABLE]
    assert all(route and route.endpoint.method == method for route, method in found)
    told = {route.endpoint for route, _ in found if route}
    everything = set(type(next(iter(told))))
    assert {one.name for one in everything - told} == {"V2_ALL_STATS"}


def test_its_codes_are_those_of_the_openapi_document():
    codes = [int(code) for code in re.findall(r"^\| (\d{3}) \|", PAGE, re.MULTILINE)]
    # no operation of the document has another method
    assert codes == sorted({*ERRORS, 405})
