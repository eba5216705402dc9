"""gRPC of a real daemon: asked, drained, reloaded, and missing."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import threading

import grpc
import numpy as np
import pytest
from certificate_files import make_token
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException
from world_bundles import MODEL, ROW, tiny_bundle
from world_device import make_home
from world_process import ask, run_to_end, running
from world_waiting import eventually

from edgepack_cli.demo.ports import free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("grpc") / "a.edgepack"
    tiny_bundle(path, "1.0.0")
    return path


def grpc_port(daemon):
    daemon.wait_said("gRPC on port")
    return int(re.findall(r"gRPC on port (\d+)", daemon.said)[-1])


def row():
    made = triton.InferInput("x", [1, len(ROW)], "FP32")
    made.set_data_from_numpy(np.array([ROW], np.float32))
    return made


def test_a_bundle_is_served_over_both_until_sigterm(bundle, tmp_path):
    arguments = ("run", "--bundle", bundle, "--port", 0, "--grpc-port", 0)
    with running(tmp_path / "log", "edgepack_cli", *arguments) as daemon:
        http, port = daemon.port(), grpc_port(daemon)
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.infer(MODEL, [row()]).as_numpy("p").shape[0] == 1
        stats = ask(http, "GET", f"/v2/models/{MODEL}/stats").json["model_stats"]
        assert stats[0]["inference_count"] == 1
        assert daemon.end() == 0
        events = [json.loads(line)["event"] for line in daemon.said.splitlines()]
        assert "grpc" in events
        assert not {"request_failed", "stop_cut_short"} & set(events), daemon.said


def test_what_is_in_flight_is_answered_and_nothing_new_is_taken(bundle, tmp_path):
    arguments = ("run", "--bundle", bundle, "--port", 0, "--grpc-port", 0)
    more, path = threading.Event(), "/inference.GRPCInferenceService/ModelStreamInfer"
    first = service_pb2.ModelInferRequest(model_name=MODEL)
    first.inputs.add(name="x", datatype="FP32", shape=[1, len(ROW)])
    first.raw_input_contents.append(np.array([ROW], np.float32).tobytes())

    def requests():
        yield first.SerializeToString()
        more.wait(20)
        yield first.SerializeToString()

    with running(tmp_path / "log", "edgepack_cli", *arguments) as daemon:
        port = grpc_port(daemon)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = channel.stream_stream(path)(requests(), timeout=20)
            assert next(stream)
            daemon.process.send_signal(signal.SIGTERM)

            def refused():
                with grpc.insecure_channel(f"127.0.0.1:{port}") as other:
                    call = other.unary_unary("/inference.GRPCInferenceService/ServerLive")
                    try:
                        call(b"", timeout=5)
                    except grpc.RpcError as error:
                        return error.code() == grpc.StatusCode.UNAVAILABLE
                    return False

            eventually(refused, "new calls are refused")
            more.set()
            assert len(list(stream)) == 1
        assert daemon.wait() == 0


def test_a_device_takes_up_a_new_token(tmp_path):
    home = tmp_path / "home"
    make_home(home, "pi-1", free_port())
    config, token = home / "device.toml", make_token(home / "token")
    told = config.read_text().replace("[serve]", '[serve]\ngrpc_port = 0\ntoken_file = "token"')
    config.write_text(told)

    def ready(port, token):
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            headers = {"authorization": f"Bearer {token}"}
            try:
                return client.get_server_metadata(headers=headers).name == "edgepack"
            except InferenceServerException as error:
                return error.status() != "StatusCode.UNAUTHENTICATED"

    with running(home / "log", "edgepack_cli", "run", "--config", config) as daemon:
        port = grpc_port(daemon)
        assert ready(port, token)
        (home / "token").unlink()
        newer = make_token(home / "token", "fedcba9876543210" * 4)
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: ready(port, newer), lambda: daemon.said)
        assert not ready(port, token)
        assert daemon.end() == 0


@pytest.mark.parametrize("port", ["taken", 99_999, -1])
def test_a_port_that_cannot_be(bundle, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1] if port == "taken" else port
        ended = run_to_end("edgepack_runtime", "--bundle", bundle, "--port", 0, "--grpc-port", port)
    assert ended.returncode == 78, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"error: cannot listen at 127.0.0.1:{port}")
    # gRPC's own lines are no JSON
    assert "Failed to" not in ended.stderr


def test_what_the_file_says_is_not_said_twice(tmp_path):
    config = tmp_path / "device.toml"
    config.touch()
    ended = run_to_end("edgepack_cli", "run", "--config", config, "--grpc-port", 1)
    assert (ended.returncode, "--grpc-port" in ended.stderr) == (2, True)


def test_a_device_without_grpcio_says_what_to_install(bundle, tmp_path):
    # a name of None in sys.modules is how an import of what is not there ends
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['grpc'] = None\n")
    ended = run_to_end(
        "edgepack_runtime", "--bundle", bundle, "--port", 0, "--grpc-port", 0,
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert ended.returncode == 78, ended.stderr
    assert "pip install 'edgepack[grpc]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sys.modules["grpc"] is not None
