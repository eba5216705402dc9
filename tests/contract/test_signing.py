from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from bundle_samples import PUBLISHER, STRANGER
from hypothesis import given
from hypothesis import strategies as st

from edgepack_contract.dsse import pae
from edgepack_contract.errors import BundleError, MalformedBundleError, UntrustedBundleError
from edgepack_contract.keys import PrivateKey
from edgepack_contract.signing import GIT_PATHS, key_hint, sign_tree, verify_statement

TREE = {
    "bundle-index.json": f"sha256:{'1' * 64}",
    "a-b/model.onnx": f"sha256:{'2' * 64}",
    "a/model.onnx": f"sha256:{'3' * 64}",
}
PAYLOAD_TYPE = "application/vnd.in-toto+json"


def test_round_trip():
    raw = sign_tree(TREE, PUBLISHER, name="digits-1.0.0")
    key, files = verify_statement(raw, [STRANGER.public, PUBLISHER.public])
    assert key.fingerprint == PUBLISHER.public.fingerprint
    assert files == TREE


def test_signing_is_deterministic():
    assert sign_tree(TREE, PUBLISHER, name="x") == sign_tree(TREE, PUBLISHER, name="x")


def test_resources_are_sorted_by_path_parts_as_the_reference_tool_does():
    statement = statement_of(sign_tree(TREE, PUBLISHER, name="x"))
    names = [resource["name"] for resource in statement["predicate"]["resources"]]
    assert names == ["a/model.onnx", "a-b/model.onnx", "bundle-index.json"]


paths = st.from_regex(r"\A[a-z]{1,4}(-[a-z])?(/[a-z.]{1,3})?\Z")
digests = st.binary(min_size=32, max_size=32).map(lambda raw: f"sha256:{raw.hex()}")


@given(st.dictionaries(paths, digests, min_size=1, max_size=20))
def test_what_is_signed_is_what_is_verified(tree):
    assert verify_statement(sign_tree(tree, PUBLISHER, name="x"), [PUBLISHER.public])[1] == tree


def statement_of(raw: bytes) -> dict[str, Any]:
    return json.loads(base64.b64decode(json.loads(raw)["dsseEnvelope"]["payload"]))


def statement(**changes: Any) -> dict[str, Any]:
    return statement_of(sign_tree(TREE, PUBLISHER, name="x")) | changes


def predicate(**changes: Any) -> dict[str, Any]:
    return statement(predicate=statement()["predicate"] | changes)


def serialization(**changes: Any) -> dict[str, Any]:
    return predicate(serialization=statement()["predicate"]["serialization"] | changes)


def resources(found: list[dict[str, str]]) -> dict[str, Any]:
    """A statement with other resources and the subject that goes with them."""
    raw = b"".join(bytes.fromhex(one["digest"]) for one in found)
    subject = {"name": "x", "digest": {"sha256": hashlib.sha256(raw).hexdigest()}}
    return predicate(resources=found) | {"subject": [subject]}


def sealed(
    payload: bytes,
    *,
    signer: PrivateKey = PUBLISHER,
    payload_type: str = PAYLOAD_TYPE,
    **envelope: Any,
) -> bytes:
    """A signature file over any payload, with a signature that holds."""
    signature = base64.b64encode(signer.sign(pae(payload_type, payload))).decode()
    fields = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"sig": signature, "keyid": ""}],
    }
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": key_hint(signer.public)}},
            "dsseEnvelope": fields | envelope,
        }
    ).encode()


def refused(raw: bytes, kind: type[BundleError] = MalformedBundleError) -> str:
    with pytest.raises(kind) as refusal:
        verify_statement(raw, [PUBLISHER.public])
    return refusal.value.code


def test_the_sealer_of_these_tests_seals_what_is_accepted():
    raw = sealed(json.dumps(statement()).encode())
    assert verify_statement(raw, [PUBLISHER.public])[1] == TREE


LIST = statement()["predicate"]["resources"]
BROKEN_STATEMENTS: dict[str, dict[str, Any]] = {
    "another statement type": statement(_type="https://in-toto.io/Statement/v0.1"),
    "another predicate": statement(predicateType="https://slsa.dev/provenance/v1"),
    "the predicate before 1.0": statement(predicateType="https://model_signing/Digests/v0.1"),
    "unknown field": statement(extra=1),
    "unknown field of the predicate": predicate(extra=1),
    "no subject": statement(subject=[]),
    "two subjects": statement(subject=statement()["subject"] * 2),
    "subject of other digests": statement(subject=[{"name": "x", "digest": {"sha256": "0" * 64}}]),
    "subject of another algorithm": statement(
        subject=[{"name": "x", "digest": {"sha512": "0" * 64}}]
    ),
    "no resources": resources([]),
    "resources unsorted": resources(LIST[::-1]),
    "resources sorted by characters": resources(sorted(LIST, key=lambda one: one["name"])),
    "resource twice": resources([LIST[0], LIST[0]]),
    "resource of another algorithm": resources([LIST[0] | {"algorithm": "blake3"}]),
    "resource digest upper case": resources([LIST[0] | {"digest": "A" * 64}]),
    "resource digest short": resources([LIST[0] | {"digest": "aa"}]),
    "resource without name": resources([LIST[0] | {"name": ""}]),
    "symbolic links": serialization(allow_symlinks=True),
    "symbolic links in words": serialization(allow_symlinks="false"),
    "shards": serialization(method="shards", shard_size=1000),
    "another hash": serialization(hash_type="blake3"),
    "ignores a file": serialization(ignore_paths=[*GIT_PATHS, "a"]),
    "ignores a file like a signature": serialization(ignore_paths=[*GIT_PATHS, "evil.sig"]),
    "ignores two signatures": serialization(ignore_paths=[*GIT_PATHS, "bundle.sig", "model.sig"]),
    "ignores some of git": serialization(ignore_paths=[".git"]),
    "ignores the signature alone": serialization(ignore_paths=["bundle.sig"]),
    "ignores twice": serialization(ignore_paths=[*GIT_PATHS, ".git"]),
    "lists what it ignores": resources([LIST[0] | {"name": ".git/config"}]),
}


@pytest.mark.parametrize("broken", BROKEN_STATEMENTS.values(), ids=BROKEN_STATEMENTS)
def test_a_statement_that_leaves_room_is_refused_although_it_is_signed(broken):
    refused(sealed(json.dumps(broken).encode()))


@pytest.mark.parametrize(
    "ignored", [[], sorted(GIT_PATHS), [*GIT_PATHS, "bundle.sig"], [*GIT_PATHS, "model.sig"]]
)
def test_ignored_paths_that_are_accepted(ignored):
    raw = sealed(json.dumps(serialization(ignore_paths=ignored)).encode())
    assert verify_statement(raw, [PUBLISHER.public])[1] == TREE


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        json.dumps(statement()).encode("utf-16"),
        json.dumps(statement()).replace('"_type"', '"_type": "x", "_type"').encode(),
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_a_signed_payload_that_is_no_json_is_refused(payload):
    refused(sealed(payload))


GOOD = json.loads(sign_tree(TREE, PUBLISHER, name="x"))
ENVELOPE = GOOD["dsseEnvelope"]
SIGNATURE = ENVELOPE["signatures"][0]
FOREIGN = json.loads(sign_tree(TREE, STRANGER, name="x"))


def with_envelope(**changes: Any) -> bytes:
    return json.dumps(GOOD | {"dsseEnvelope": ENVELOPE | changes}).encode()


def with_material(material: dict[str, Any]) -> bytes:
    return json.dumps(GOOD | {"verificationMaterial": material}).encode()


BROKEN_FILES: dict[str, bytes] = {
    "empty": b"",
    "not an object": b"[]",
    "unknown field": json.dumps(GOOD | {"extra": 1}).encode(),
    "older media type": json.dumps(
        GOOD | {"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.2"}
    ).encode(),
    "no signature": with_envelope(signatures=[]),
    "two signatures, both good": with_envelope(signatures=[SIGNATURE, SIGNATURE]),
    "a key id": with_envelope(signatures=[SIGNATURE | {"keyid": "x"}]),
    "another payload type": with_envelope(payloadType="application/json"),
    "payload in the URL alphabet": with_envelope(payload="_-" * 8),
    "payload with a line break": with_envelope(payload=ENVELOPE["payload"][:8] + "\n"),
    "signature not base64": with_envelope(signatures=[SIGNATURE | {"sig": "?"}]),
    "no hint": with_material({"publicKey": {}}),
    "hint not a digest": with_material({"publicKey": {"hint": "mine"}}),
    "a certificate": with_material({"certificate": {"rawBytes": ""}}),
    "a log entry": with_material({**GOOD["verificationMaterial"], "tlogEntries": ["x"]}),
    "larger than 4 MiB": json.dumps(GOOD).encode() + b" " * (4 * 1024 * 1024),
}


@pytest.mark.parametrize("raw", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_broken_signature_file_is_refused(raw):
    refused(raw)


def der(r: int, s: int) -> str:
    def integer(value: int) -> bytes:
        raw = value.to_bytes(max(1, (value.bit_length() + 8) // 8))
        return b"\x02" + bytes([len(raw)]) + raw

    body = integer(r) + integer(s)
    return base64.b64encode(b"\x30" + bytes([len(body)]) + body).decode()


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize(
    "sig",
    [
        "",
        base64.b64encode(b"garbage").decode(),
        base64.b64encode(bytes(64)).decode(),
        der(0, 0),
        der(1, 0),
        der(0, 1),
        der(1, 1),
        der(ORDER, ORDER),
        FOREIGN["dsseEnvelope"]["signatures"][0]["sig"],
    ],
)
def test_a_signature_that_does_not_hold(sig):
    raw = with_envelope(signatures=[SIGNATURE | {"sig": sig}])
    assert refused(raw, UntrustedBundleError) == "bad-signature"


def test_foreign_key():
    assert refused(json.dumps(FOREIGN).encode(), UntrustedBundleError) == "unknown-publisher"


def test_foreign_signature_under_the_hint_of_a_trusted_key():
    raw = json.dumps(FOREIGN | {"verificationMaterial": GOOD["verificationMaterial"]}).encode()
    assert refused(raw, UntrustedBundleError) == "bad-signature"


def test_nobody_is_trusted():
    with pytest.raises(UntrustedBundleError, match="none"):
        verify_statement(json.dumps(GOOD).encode(), [])


def test_a_signature_over_another_payload_type_is_not_one_over_this():
    raw = sealed(json.dumps(statement()).encode(), payload_type="application/other")
    moved = json.loads(raw)
    moved["dsseEnvelope"]["payloadType"] = PAYLOAD_TYPE
    assert refused(json.dumps(moved).encode(), UntrustedBundleError) == "bad-signature"


def test_the_bug_compatible_encoding_before_1_0_is_not_accepted():
    payload = json.dumps(statement()).encode()
    old = f"DSSEV1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} {payload!r}".encode()
    sig = base64.b64encode(PUBLISHER.sign(old)).decode()
    raw = sealed(payload, signatures=[{"sig": sig, "keyid": ""}])
    assert refused(raw, UntrustedBundleError) == "bad-signature"
