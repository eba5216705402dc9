"""``edgepack run --bundle``: one file, this machine, no fleet. Real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import tempfile

import pytest
from bundle_samples import PUBLISHER, STRANGER, fixed_key
from certificate_files import make_tls, make_token
from world_bundles import (
    MODEL,
    ROW,
    model_files,
    ranked_bundle,
    tiny_bundle,
    tiny_description,
)
from world_process import ask, run_to_end, running

from edgepack_contract.description import Platform
from edgepack_contract.errors import ConfigError
from edgepack_contract.hardware import this_machine
from edgepack_contract.keyring import Publisher, make_keyring
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_runtime.standalone import unpacking_folder

OWNER = fixed_key(20)
PREDICT = f"/v1/models/{MODEL}:predict"
RUNTIME = "edgepack_runtime"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Signed, unsigned and foreign-signed bundles, and the keyring."""
    folder = tmp_path_factory.mktemp("standalone")
    tiny_bundle(folder / "signed.edgepack", "1.0.0")
    tiny_bundle(folder / "unsigned.edgepack", "1.0.0", signer=None)
    tiny_bundle(folder / "foreign.edgepack", "1.0.0", signer=STRANGER)
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    keyring = make_keyring(
        OWNER, version=1, epoch=1, publishers=[publisher], fleets=[fixed_key(21).public]
    )
    (folder / "keyring.json").write_bytes(keyring)
    return folder


def trust(files, owner=OWNER):
    return ("--keyring", files / "keyring.json", "--owner", owner.public.fingerprint)


def refused(*arguments):
    """Run ``edgepack run``, which must end by itself: its exit code and what it said."""
    ended = run_to_end("edgepack_cli", "run", "--port", 0, *arguments)
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def test_an_unsigned_bundle_serves_with_a_notice_until_sigterm(files, tmp_path):
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    os.utime(unpacked, (0, 0))
    command = ("edgepack_cli", "run", "--bundle", files / "unsigned.edgepack", "--port", 0)
    # a folder of its own: other workers run the same command beside this one
    with running(tmp_path / "log", *command, TMPDIR=str(unpacked)) as process:
        port = process.port()
        answer = ask(port, "POST", PREDICT, {"instances": [ROW]})
        assert (answer.status, answer.json["model_version"]) == (200, "1.0.0")
        assert ask(port, "GET", "/v2/health/ready").status == 200
        assert process.end(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in process.said.splitlines()]
    notice = next(line for line in lines if line["event"] == "unsigned")
    assert notice["level"] == "warning"
    assert "--keyring and --owner" in notice["message"]
    assert unpacked.stat().st_mtime > 0, "nothing was unpacked here"
    assert list(unpacked.iterdir()) == []


def test_a_signed_bundle_serves_without_a_notice_on_a_socket_too(files, tmp_path):
    arguments = ("--bundle", files / "signed.edgepack", "--port", 0, *trust(files))
    place = tmp_path / "serve.sock"
    with running(tmp_path / "log", RUNTIME, *arguments, "--unix-socket", place) as process:
        process.port()
        assert ask(place, "POST", PREDICT, {"instances": [ROW]}).status == 200
        assert process.end(signal.SIGINT) == 0
        assert "no signature was checked" not in process.said
    assert not place.exists()


def test_of_several_variants_the_first_that_does_well_is_served(tmp_path):
    bundle = tmp_path / "ranked.edgepack"
    ranked_bundle(bundle, "1.0.0", wrong=("fast",))
    with running(tmp_path / "log", RUNTIME, "--bundle", bundle, "--port", 0) as process:
        answer = ask(process.port(), "POST", PREDICT, {"instances": [ROW]})
        assert answer.status == 200
        assert process.end(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in process.said.splitlines()]
    passed = [line for line in lines if line["event"] == "variant_passed_over"]
    assert [line["variant"] for line in passed] == ["fast"]
    assert "does not do here: golden-mismatch: output 'p'" in passed[0]["message"]


def test_when_no_variant_does_well_all_their_reasons_are_said(tmp_path):
    bundle = tmp_path / "ranked.edgepack"
    ranked_bundle(bundle, "1.0.0", wrong=("fast", "alt1", "fp32"))
    _, said = refused("--bundle", bundle)
    assert f"no variant of {MODEL} does well here: fast: golden-mismatch: " in said
    assert all(f"; {name}: golden-mismatch: " in said for name in ("alt1", "fp32"))


def test_a_graph_that_must_not_be_is_not_loaded(tmp_path):
    bundle = tmp_path / "hostile.edgepack"
    description = tiny_description("1.0.0", operators=["ai.onnx:Gemm"])
    write_bundle(bundle, BundleContent([VariantContent(description, model_files("1.0.0"))]))
    _, said = refused("--bundle", bundle)
    assert "model.onnx: it has the operator ai.onnx:Softmax, which edgepack.json does not" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unsigned", "is not signed; sign it with a publisher key of the keyring: edgepack sign"),
        ("foreign", "sign it with a trusted key, or have the owner add this key to the keyring"),
    ],
)
def test_with_a_keyring_only_its_publishers_are_served(files, name, words):
    code, said = refused("--bundle", files / f"{name}.edgepack", *trust(files))
    assert code == 6
    assert words in said


def test_a_keyring_of_another_owner_is_refused(files):
    code, said = refused("--bundle", files / "signed.edgepack", *trust(files, owner=STRANGER))
    assert code == 6
    assert "the keyring is of owner" in said


def test_a_keyring_that_is_not_there_is_a_bad_configuration(files):
    ended = run_to_end(
        RUNTIME, "--bundle", files / "signed.edgepack", "--keyring", files / "none", "--owner", "0"
    )
    assert ended.returncode == 78
    assert f"cannot read {files / 'none'}" in ended.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_off_loopback_it_takes_tls_a_token_and_a_signature(files, host):
    code, said = refused("--bundle", files / "unsigned.edgepack", "--host", host)
    assert code == 78
    first, *lines = said.splitlines()
    assert first == "error: refusing to start, 3 settings are insecure:"
    assert [line.split(":")[0].strip() for line in lines] == [
        "--tls-certificate", "--token-file", "--keyring",
    ]  # fmt: skip
    assert "--host 127.0.0.1" in said


@pytest.fixture
def tls(tmp_path):
    return make_tls(tmp_path / "tls")


@pytest.fixture
def guarded(tls, tmp_path):
    """The options of a listener that may be off loopback."""
    make_token(tmp_path / "token")
    return (
        "--host", "0.0.0.0", "--tls-certificate", tls.certificate, "--tls-key", tls.key,
        "--token-file", tmp_path / "token",
    )  # fmt: skip


def ports(process):
    """The ports that its log tells."""
    process.wait_said('"event": "serving"')
    lines = map(json.loads, process.said.splitlines())
    told = next(line for line in lines if line["event"] == "serving")
    return told["port"], told["ops_port"]


def ask_tls(port, tls, method, path, body=None, **headers):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=tls.trusting())
    with contextlib.closing(connection):
        connection.request(method, path, body and json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_a_secure_listener_off_loopback(files, tmp_path, tls, guarded):
    arguments = ("run", "--bundle", files / "signed.edgepack", "--port", 0, *trust(files))
    ops = ("--ops-host", "0.0.0.0", "--ops-port", 0)
    with running(tmp_path / "log", "edgepack_cli", *arguments, *guarded, *ops) as process:
        port, ops_port = ports(process)
        body, bearer = {"instances": [ROW]}, {"authorization": f"Bearer {'0123456789abcdef' * 4}"}
        status, answer = ask_tls(port, tls, "POST", PREDICT, body, **bearer)
        assert (status, answer["model_version"]) == (200, "1.0.0")
        assert ask_tls(port, tls, "POST", PREDICT, body)[0] == 401
        assert ask_tls(port, tls, "POST", PREDICT, body, authorization="Bearer no")[0] == 401
        assert ask_tls(port, tls, "GET", "/v2/health/ready")[0] == 200
        assert ask(ops_port, "GET", "/health").json["insecure"] is None
        assert ask(ops_port, "POST", PREDICT, body).status == 404
        assert process.end(signal.SIGTERM) == 0
    assert '"event": "insecure"' not in process.said


def test_hangup_takes_up_a_new_certificate_and_refuses_a_bad_one(files, tmp_path, tls, guarded):
    arguments = ("--bundle", files / "signed.edgepack", "--port", 0, *trust(files), *guarded)
    with running(tmp_path / "log", RUNTIME, *arguments) as process:
        port, _ = ports(process)
        renewed = make_tls(tmp_path / "tls")
        process.process.send_signal(signal.SIGHUP)
        process.wait_said('"event": "reloaded"')
        assert ask_tls(port, renewed, "GET", "/v2/health/live")[0] == 200
        (tmp_path / "token").chmod(0o644)
        process.process.send_signal(signal.SIGHUP)
        process.wait_said('"event": "reload_refused"')
        assert "can be read or written by others (mode 0644)" in process.said
        assert ask_tls(port, renewed, "GET", "/v2/health/live")[0] == 200
        assert process.end(signal.SIGTERM) == 0


def test_a_reason_lets_it_start_and_is_told(files, tmp_path):
    arguments = ("--bundle", files / "unsigned.edgepack", "--port", 0, "--host", "0.0.0.0")
    reason = {"EDGEPACK_ALLOW_INSECURE": "bench without a network"}
    with running(tmp_path / "log", RUNTIME, *arguments, **reason) as process:
        port, _ = ports(process)
        process.wait_said('"event": "insecure"', times=3)
        assert ask(port, "POST", PREDICT, {"instances": [ROW]}).status == 200
        assert ask(port, "GET", "/health").json["insecure"] == {
            "reason": "bench without a network",
            "settings": ["--keyring", "--tls-certificate", "--token-file"],
        }
        assert process.end(signal.SIGTERM) == 0
    assert "insecure (bench without a network): --token-file: everybody who" in process.said


def test_a_demo_keyring_stays_on_loopback(files, tmp_path, guarded):
    publisher = Publisher(key=PUBLISHER.public.pem.decode(), names=["*"])
    keyring = make_keyring(OWNER, version=1, epoch=1, publishers=[publisher], fleets=[], demo=True)
    (tmp_path / "keyring.json").write_bytes(keyring)
    demo = ("--keyring", tmp_path / "keyring.json", "--owner", OWNER.public.fingerprint)
    arguments = (RUNTIME, "--bundle", files / "signed.edgepack", "--port", 0, *demo)
    reason = {"EDGEPACK_ALLOW_INSECURE": "a demo for the board"}
    ended = run_to_end(*arguments, *guarded, **reason)
    assert ended.returncode == 78
    assert "--keyring: the keyring is a demo's" in ended.stderr
    with running(tmp_path / "log", *arguments) as process:
        assert ask(process.port(), "GET", "/v2/health/live").status == 200


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda raw: raw[: len(raw) // 2], 6),
        (lambda raw: raw[:-512], 6),
        (lambda raw: raw.replace(b"Softmax", b"Softmin"), 6),
        (lambda raw: b"", 6),
        (lambda raw: b"PK\x03\x04" + raw, 6),
    ],
    ids=["half", "without its end", "altered", "empty", "something else"],
)
def test_what_is_not_whole_is_not_served(files, tmp_path, harm, code):
    raw = (files / "unsigned.edgepack").read_bytes()
    assert harm(raw) != raw
    bad = tmp_path / "bad.edgepack"
    bad.write_bytes(harm(raw))
    found, said = refused("--bundle", bad)
    assert found == code
    assert said.startswith("error: ")


def test_a_bundle_for_another_machine_says_what_it_is_for(tmp_path):
    here = this_machine(onnxruntime="1.31.0").architecture
    elsewhere = "arm64" if here == "amd64" else "amd64"
    other = tmp_path / "other.edgepack"
    tiny_bundle(other, "1.0.0", platform=Platform(architecture=elsewhere))
    code, said = refused("--bundle", other)
    assert code == 7
    assert "no variant of this bundle fits this machine" in said
    assert elsewhere in said


def test_a_file_that_is_not_there_is_named(tmp_path):
    ended = run_to_end(RUNTIME, "--bundle", tmp_path / "none.edgepack")
    assert ended.returncode == 3
    assert f"cannot read {tmp_path / 'none.edgepack'}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_cannot_be_is_named(files):
    code, said = refused("--bundle", files / "unsigned.edgepack", "--port", 70000)
    assert code == 78
    assert "cannot listen at 127.0.0.1:70000" in said


def test_a_port_that_is_taken_is_named(files, tmp_path):
    bundle = files / "unsigned.edgepack"
    with running(tmp_path / "log", RUNTIME, "--bundle", bundle, "--port", 0) as process:
        ended = run_to_end(RUNTIME, "--bundle", bundle, "--port", process.port())
    assert ended.returncode == 78
    assert "cannot listen at 127.0.0.1:" in ended.stderr


def test_a_machine_with_nowhere_to_unpack_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="TMPDIR") as refused:
        unpacking_folder()
    assert refused.value.code == "no-temporary-folder"
