"""Who the device is and whom it believes, checked: keys, certificates, keyring, clock, gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgepack_contract.certificates import certificate_key, common_name, read_certificate
from edgepack_contract.errors import EdgepackError
from edgepack_contract.keys import read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.small_files import read_small
from edgepack_runtime.admission import device_facts
from edgepack_runtime.config import RuntimeConfig
from edgepack_runtime.local.findings import Finding, fail, ok, warn
from edgepack_runtime.local.looking import certificates
from edgepack_runtime.local.view import CertificateView
from edgepack_runtime.membership.identity import load_identity
from edgepack_runtime.security import security_gate
from edgepack_runtime.storage.fsio import DurableFS
from edgepack_runtime.trust import peek_trust

DAY_MS = 86_400_000
SOON_DAYS = 14
_AGAIN = "enrol again: edgepack enrol --again FOLDER"


def check_security(config: RuntimeConfig) -> list[Finding]:
    """The rules that keep a daemon from starting: permissions of keys, listeners, tokens."""
    broken = security_gate(device_facts(config))
    found = [fail("security", f"{one.key}: {one.words}", one.fix) for one in broken]
    return found or [ok("security", "keys are closed to others, and listeners are guarded")]


def check_keys(config: RuntimeConfig, now_ms: Callable[[], int]) -> list[Finding]:
    """The device's key, its MAC key, its certificates."""
    try:
        load_identity(config)
    except EdgepackError as error:
        return [_unusable("keys", error, _AGAIN)]
    found = [ok("keys", f"{config.identity.key} and {config.identity.mac_key}")]
    found += [_expiry(one, now_ms()) for one in certificates(config)]
    return found + _belongs(config)


def check_clock(config: RuntimeConfig, now_ms: Callable[[], int]) -> list[Finding]:
    """The clock, against what signed documents prove, and the keyring."""
    try:
        trust = peek_trust(config, DurableFS(), system_ms=now_ms)
    except EdgepackError as error:
        remedy = "put the keyring of the pinned owner there: it is public, and any device has it"
        return [_unusable("keyring", error, remedy)]
    keyring = trust.keyring
    found = [ok("keyring", f"version {keyring.version} of epoch {keyring.epoch}")]
    if trust.clock.is_behind:
        behind = (trust.clock.floor_ms - now_ms()) // 1000
        words = f"it is {behind} s behind what signed documents prove"
        remedy = "set it, and keep it right: timedatectl set-ntp true"
        return [*found, fail("clock", words, remedy)]
    return [*found, ok("clock", "not behind anything that is signed")]


def _expiry(one: CertificateView, now_ms: int) -> Finding:
    if one.expires is None:
        return fail("certificate", f"{one.what}: {one.problem}", _renewal(one))
    days = (one.expires - now_ms) / DAY_MS
    words = f"{one.what} ends in {days:.0f} days"
    if days <= 0:
        return fail("certificate", f"{one.what} ended {-days:.0f} days ago", _renewal(one))
    return (
        warn("certificate", words, _renewal(one)) if days < SOON_DAYS else ok("certificate", words)
    )


def _renewal(one: CertificateView) -> str:
    if one.what == "identity.certificate":
        return f"the daemon renews it while it reaches the fleet; else {_AGAIN}"
    return f"put a new one at {one.path}, and send the daemon SIGHUP"


def _belongs(config: RuntimeConfig) -> list[Finding]:
    """Whether the device's certificate is for its key and its name."""
    path = config.identity.certificate
    if path is None:
        return []
    try:
        certificate = read_certificate(read_small(Path(path), LIMITS.key_file_bytes))
        own = read_private_key(Path(config.identity.key)).public.fingerprint
        other = certificate_key(certificate).fingerprint
    except (OSError, EdgepackError):
        # it was said already
        return []
    if own != other:
        return [fail("certificate", f"{path} is for another key", _AGAIN)]
    name = common_name(certificate)
    if name != config.device:
        return [fail("certificate", f"{path} names {name}, not {config.device}", _AGAIN)]
    return []


def _unusable(check: str, error: EdgepackError, remedy: str) -> Finding:
    if isinstance(error.__cause__, PermissionError):
        return warn(check, str(error), "run this as the daemon's user, or with sudo")
    return fail(check, str(error), remedy)
