"""The authority: what it issues is accepted by others' X.509 code, and nothing else is."""

from __future__ import annotations

import base64
import ipaddress
import itertools
from datetime import UTC, datetime

import pytest
from bundle_samples import fixed_key
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from edgepack_contract.certificates import (
    Authority,
    certificate_key,
    common_name,
    make_request,
    read_authority,
    read_certificate,
    read_request,
)
from edgepack_contract.errors import ConfigError, EdgepackError, SigningKeyError

NOW = 1_800_000_000_000
DAY = 24 * 3600 * 1000
KEY, DEVICE = fixed_key(1), fixed_key(2)
AUTHORITY = Authority.create(KEY, name="fleet", now_ms=NOW)
OTHER = Authority.create(fixed_key(3), name="fleet", now_ms=NOW)
SERVER = AUTHORITY.issue_server(DEVICE.public, hosts=["fleet.local", "::1"], now_ms=NOW)
CLIENT = AUTHORITY.issue_client(DEVICE.public, name="pi-1", now_ms=NOW)


def verifier(authority=AUTHORITY, *, at=NOW):
    moment = datetime.fromtimestamp(at / 1000, UTC)
    return PolicyBuilder().store(Store([authority.certificate])).time(moment)


def is_server(issued, host, **changes):
    try:
        verifier(**changes).build_server_verifier(host).verify(read_certificate(issued.pem), [])
    except VerificationError:
        return False
    return True


def test_a_server_is_known_by_its_names_for_its_time_and_by_its_authority_only():
    assert is_server(SERVER, x509.DNSName("fleet.local"))
    assert is_server(SERVER, x509.IPAddress(ipaddress.ip_address("::1")))
    assert is_server(SERVER, x509.DNSName("fleet.local"), at=SERVER.expires_ms - DAY)
    assert not is_server(SERVER, x509.DNSName("other.local"))
    assert not is_server(SERVER, x509.DNSName("fleet.local"), at=SERVER.expires_ms + DAY)
    assert not is_server(SERVER, x509.DNSName("fleet.local"), at=NOW - DAY)
    assert not is_server(SERVER, x509.DNSName("fleet.local"), authority=OTHER)
    assert not is_server(CLIENT, x509.DNSName("fleet.local"))


def test_a_device_is_named_by_its_certificate_which_cannot_issue_or_serve():
    certificate = read_certificate(CLIENT.pem)
    assert common_name(certificate) == "pi-1"
    assert certificate_key(certificate).fingerprint == DEVICE.public.fingerprint
    certificate.verify_directly_issued_by(AUTHORITY.certificate)
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(OTHER.certificate)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [one.dotted_string for one in usage] == ["1.3.6.1.5.5.7.3.2"]
    with pytest.raises(SigningKeyError) as caught:
        read_authority(CLIENT.pem)
    assert caught.value.code == "bad-authority"


def test_times_and_serials_are_what_the_certificate_says():
    certificate = read_certificate(CLIENT.pem)
    assert CLIENT.expires_ms == int(certificate.not_valid_after_utc.timestamp() * 1000)
    assert CLIENT.expires_ms == NOW + 90 * DAY
    assert certificate.serial_number == int(CLIENT.serial, 16)


def test_nothing_is_issued_beyond_the_authoritys_own_end_or_after_it():
    ends = AUTHORITY.certificate.not_valid_after_utc
    end = int(ends.timestamp() * 1000)
    late = AUTHORITY.issue_client(DEVICE.public, name="pi-1", now_ms=end - DAY)
    assert late.expires_ms == end
    for issue in (
        lambda: AUTHORITY.issue_client(DEVICE.public, name="pi-1", now_ms=end),
        lambda: AUTHORITY.issue_server(DEVICE.public, hosts=["h"], now_ms=end + DAY),
    ):
        with pytest.raises(SigningKeyError, match="keys rotate authority") as caught:
            issue()
        assert caught.value.code == "authority-expired"


def test_an_authority_is_opened_with_its_own_key_only():
    assert Authority.open(KEY, AUTHORITY.pem).certificate == AUTHORITY.certificate
    with pytest.raises(SigningKeyError):
        Authority.open(DEVICE, AUTHORITY.pem)
    with pytest.raises(SigningKeyError):
        Authority.open(DEVICE, CLIENT.pem)


def test_the_revocation_list_names_serials_and_which_authority_it_is_of():
    raw = AUTHORITY.revocation_list([(CLIENT.serial, NOW)], now_ms=NOW)
    crl = x509.load_pem_x509_crl(raw)
    assert crl.is_signature_valid(KEY.public.key)
    assert crl.get_revoked_certificate_by_serial_number(int(CLIENT.serial, 16)) is not None
    assert crl.get_revoked_certificate_by_serial_number(int(SERVER.serial, 16)) is None
    # Two authorities may have the same name: OpenSSL tells their lists apart by the identifier.
    kind = x509.AuthorityKeyIdentifier
    mine, others = (
        x509.load_pem_x509_crl(one.revocation_list([], now_ms=NOW)).extensions
        .get_extension_for_class(kind).value.key_identifier
        for one in (AUTHORITY, OTHER)
    )  # fmt: skip
    assert mine != others


@pytest.mark.parametrize("host", ["fleet.local", "127.0.0.1", "::1", "*.fleet.local", "x" * 63])
def test_hosts(host):
    assert AUTHORITY.issue_server(DEVICE.public, hosts=[host], now_ms=NOW)


def test_a_name_longer_than_a_common_name_can_be_and_one_outside_ascii():
    long = ".".join(["x" * 60] * 4)
    assert is_server(
        AUTHORITY.issue_server(DEVICE.public, hosts=[long], now_ms=NOW), x509.DNSName(long)
    )
    with pytest.raises(ConfigError, match="punycode"):
        AUTHORITY.issue_server(DEVICE.public, hosts=["flöte.local"], now_ms=NOW)


def test_a_request_proves_that_its_sender_has_the_key():
    request = read_request(make_request(DEVICE, name="pi-1"))
    assert (request.common_name, request.key.fingerprint) == ("pi-1", DEVICE.public.fingerprint)


def foreign_request(key, *names):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "bad-request"),
        (make_request(DEVICE, name="pi-1")[:-60], "bad-request"),
        (AUTHORITY.pem, "bad-request"),
        (foreign_request(KEY.key), "bad-request"),
        (foreign_request(KEY.key, "pi-1", "pi-2"), "bad-request"),
        (foreign_request(ec.generate_private_key(ec.SECP384R1()), "pi-1"), "bad-key"),
        (foreign_request(ed25519.Ed25519PrivateKey.generate(), "pi-1"), "bad-key"),
        (make_request(DEVICE, name="pi-1") + b" " * 70_000, "too-large"),
    ],
    ids=["empty", "cut", "certificate", "no-name", "two-names", "curve", "ed25519", "long"],
)  # fmt: skip
def test_requests_that_are_refused(raw, code):
    with pytest.raises(EdgepackError) as caught:
        read_request(raw)
    assert caught.value.code == code


def flipped(pem):
    """The PEM with every byte of its DER changed in turn."""
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    label = pem.splitlines()[0][11:-5]
    for place, mask in itertools.product(range(len(der)), (0x01, 0x80, 0xFF)):
        altered = bytearray(der)
        altered[place] ^= mask
        body = base64.encodebytes(bytes(altered))
        yield b"-----BEGIN " + label + b"-----\n" + body + b"-----END " + label + b"-----\n"


@pytest.mark.filterwarnings("ignore:Parsed a:cryptography.utils.CryptographyDeprecationWarning")
def test_no_altered_certificate_or_request_does_more_than_be_refused():
    """Hostile bytes raise our own errors only; a request that is accepted says the same."""
    request = make_request(DEVICE, name="pi-1")
    accepted = 0
    for pem in flipped(request):
        try:
            found = read_request(pem)
        except EdgepackError:
            continue
        accepted += 1
        assert found == read_request(request)
    assert accepted <= 1  # an unused bit of the last byte
    for pem in flipped(AUTHORITY.pem):
        try:
            certificate = read_authority(pem)
        except EdgepackError:
            continue
        common_name(certificate)
        certificate_key(certificate)
