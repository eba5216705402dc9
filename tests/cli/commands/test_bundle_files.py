"""Commands on bundle files: inspect, verify, sign and unpack."""

from __future__ import annotations

import json

import pytest
from bundle_samples import FILES, STRANGER, one_variant, three_variants

from edgepack_contract.keys import read_public_key, write_private_key
from edgepack_contract.layout import write_bundle


def digest_of(cli, path):
    return json.loads(cli("inspect", path, "--json").out)["digest"]


def test_inspect_shows_what_is_in_a_bundle(cli, bundle):
    ended = cli("inspect", bundle)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "digits 1.0.0, security version 3, is not signed"
    assert lines[1] == digest_of(cli, bundle)
    assert lines[3:8] == [
        "variant generic: fp32 for amd64, onnxruntime 1.31.0 or newer",
        "  features  any",
        "  input     pixels float32[N, 4]",
        "  output    label int64[N]",
        "  output    p float32[N, 2]",
    ]
    assert lines[8] == "  metric    accuracy 0.97 (0.957 to 0.98), n = 899, on evaluation"
    assert [line.split()[0] for line in lines[9:-2]] == ["FILE", *sorted(FILES)]
    assert lines[-1] == "evidence: report.json"


def test_inspect_writes_the_evidence_into_a_new_folder(cli, bundle, tmp_path):
    folder = tmp_path / "evidence"
    ended = cli("inspect", bundle, "--evidence", folder)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == f"evidence in {folder}: report.json"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"report.json": b"{}"}
    again = cli("inspect", bundle, "--evidence", folder)
    assert (again.code, again.out) == (3, "")
    assert f"{folder} exists" in again.err


def test_inspect_shows_every_variant_and_its_features(cli, tmp_path):
    path = tmp_path / "three.edgepack"
    write_bundle(path, three_variants(), signer=STRANGER)
    ended = cli("inspect", path)
    assert "has a signature (edgepack verify checks it)" in ended.out
    assert ended.out.count("\nvariant ") == 3
    assert "  features  avx512_vnni, x86-64-v3" in ended.out
    shown = json.loads(cli("inspect", path, "--json").out)
    assert shown["signed"]
    assert sorted(shown["variants"]) == ["arm64-dot", "generic", "x86-64-v3-int8"]


def test_verify_vouches_for_every_byte(cli, signed, trust, keys):
    publisher = read_public_key(keys[0] / "publisher.pub").fingerprint
    ended = cli("verify", signed, *trust)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[1] == f"every byte is what publisher key {publisher} signed"
    shown = json.loads(cli("verify", signed, *trust, "--json").out)
    assert shown == {
        "name": "digits", "version": "1.0.0", "digest": digest_of(cli, signed),
        "signed_by": publisher,
    }  # fmt: skip


def refused(ended, words):
    assert (ended.code, ended.out) == (6, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert words in ended.err


def test_verify_refuses_one_changed_bit(cli, signed, trust, altered, tmp_path):
    refused(cli("verify", altered(signed, tmp_path / "x"), *trust), "sha256")


def test_verify_refuses_what_nobody_signed(cli, bundle, trust):
    refused(cli("verify", bundle, *trust), "sign")


def test_verify_refuses_a_stranger(cli, trust, tmp_path):
    path = tmp_path / "foreign.edgepack"
    write_bundle(path, one_variant(), signer=STRANGER)
    refused(cli("verify", path, *trust), "keyring")


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.0])
@pytest.mark.parametrize("command", ["verify", "inspect", "unpack"])
def test_a_truncated_bundle_is_refused(cli, signed, trust, tmp_path, kept, command):
    data = signed.read_bytes()
    cut = tmp_path / "cut.edgepack"
    cut.write_bytes(data[: int(len(data) * kept)])
    more = {"verify": trust, "unpack": (tmp_path / "new",), "inspect": ()}[command]
    refused(cli(command, cut, *more), "")
    assert not (tmp_path / "new").exists()


def test_sign_changes_the_signature_and_nothing_else(cli, bundle, trust, keys, tmp_path):
    before, output = bundle.read_bytes(), tmp_path / "out.edgepack"
    ended = cli("sign", bundle, "--key", keys[0] / "publisher.key", "-o", output)
    assert ended.code == 0
    assert bundle.read_bytes() == before
    assert ended.out.split()[0] == digest_of(cli, bundle) == digest_of(cli, output)
    assert cli("verify", output, *trust).code == 0


def test_sign_in_place(cli, bundle, trust, keys):
    assert cli("sign", bundle, "--key", keys[0] / "publisher.key").code == 0
    assert cli("verify", bundle, *trust).code == 0


def test_sign_refuses_a_key_that_others_can_read(cli, bundle, tmp_path):
    key = tmp_path / "loose.key"
    write_private_key(key, STRANGER)
    key.chmod(0o644)
    ended = cli("sign", bundle, "--key", key)
    assert ended.code == 3
    assert f"chmod 600 {key}" in ended.err


def test_unpack_writes_the_plain_files(cli, signed, trust, tmp_path):
    folder = tmp_path / "plain"
    ended = cli("unpack", signed, folder, *trust)
    assert ended.code == 0
    assert ended.out == f"digits 1.0.0 in {folder}: generic\n"
    (model,) = folder.rglob("model.onnx")
    assert model.read_bytes() == FILES["model.onnx"]


def test_unpack_needs_a_new_folder(cli, signed, tmp_path):
    (tmp_path / "mine").write_text("precious")
    ended = cli("unpack", signed, tmp_path)
    assert ended.code == 3
    assert f"{tmp_path} exists" in ended.err
    assert (tmp_path / "mine").read_text() == "precious"


def test_unpack_with_a_keyring_refuses_what_nobody_signed(cli, bundle, trust, tmp_path):
    refused(cli("unpack", bundle, tmp_path / "new", *trust), "sign")
    assert not (tmp_path / "new").exists()


def test_unpack_takes_both_trust_options_or_none(cli, signed, trust, tmp_path):
    ended = cli("unpack", signed, tmp_path / "new", *trust[:2])
    assert ended.code == 2
    assert "belong together" in ended.err
