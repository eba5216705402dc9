"""Who this device is: its key and its MAC key. Whom it believes is in :mod:`.trust`."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from pathlib import Path

from edgepack_contract.errors import ConfigError
from edgepack_contract.instructions import Identity
from edgepack_contract.keys import read_private_key
from edgepack_contract.limits import LIMITS
from edgepack_contract.sealing import MAC_KEY_BYTES
from edgepack_contract.small_files import read_configured
from edgepack_runtime.config import RuntimeConfig


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What enrolment left on this device, checked."""

    identity: Identity
    mac_key: bytes


def load_identity(config: RuntimeConfig) -> DeviceIdentity:
    """Read and check the files of the ``[identity]`` table.

    Raises:
        ConfigError: A file is missing or malformed.
        SigningKeyError: The device's key cannot be used.
    """
    key = read_private_key(Path(config.identity.key))
    return DeviceIdentity(
        identity=Identity(config.tenant, config.device, key.public.fingerprint),
        mac_key=_mac_key(Path(config.identity.mac_key)),
    )


def _mac_key(path: Path) -> bytes:
    raw = read_configured(path, LIMITS.key_file_bytes, code="no-identity")
    try:
        key = binascii.unhexlify(raw.strip())
    except binascii.Error as error:
        raise ConfigError(f"{path} does not hold hex digits", code="bad-mac-key") from error
    if len(key) != MAC_KEY_BYTES:
        raise ConfigError(
            f"{path} holds {len(key)} bytes, a MAC key has {MAC_KEY_BYTES}", code="bad-mac-key"
        )
    return key
