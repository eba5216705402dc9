"""``edgepack run --bundle``: one file, this machine, no fleet. Real processes."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path

import pytest
from bundle_samples import PUBLISHER, STRANGER, fixed_key
from world_bundles import MODEL, ROW, tiny_bundle
from world_process import ask, run_to_end, running

from edgepack_contract.description import Platform
from edgepack_contract.hardware import this_machine
from edgepack_contract.keyring import Publisher, make_keyring

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
    before = set(Path(tempfile.gettempdir()).glob("edgepack-*"))
    bundle = files / "unsigned.edgepack"
    with running(
        tmp_path / "log", "edgepack_cli", "run", "--bundle", bundle, "--port", 0
    ) as process:
        port = process.port()
        answer = ask(port, "POST", PREDICT, {"instances": [ROW]})
        assert (answer.status, answer.json["model_version"]) == (200, "1.0.0")
        assert ask(port, "GET", "/v2/health/ready").status == 200
        assert process.end(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in process.said.splitlines()]
    notice = next(line for line in lines if line["event"] == "unsigned")
    assert notice["level"] == "warning"
    assert "--keyring and --owner" in notice["message"]
    assert set(Path(tempfile.gettempdir()).glob("edgepack-*")) <= before


def test_a_signed_bundle_serves_without_a_notice_on_a_socket_too(files, tmp_path):
    arguments = ("--bundle", files / "signed.edgepack", "--port", 0, *trust(files))
    place = tmp_path / "serve.sock"
    with running(tmp_path / "log", RUNTIME, *arguments, "--unix-socket", place) as process:
        process.port()
        assert ask(place, "POST", PREDICT, {"instances": [ROW]}).status == 200
        assert process.end(signal.SIGINT) == 0
        assert "no signature was checked" not in process.said
    assert not place.exists()


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
def test_it_serves_this_machine_only(files, host):
    code, said = refused("--bundle", files / "signed.edgepack", "--host", host)
    assert code == 78
    assert f"refusing to serve predictions on {host}" in said
    assert 'use "127.0.0.1"' in said


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
