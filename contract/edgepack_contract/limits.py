"""Every maximum in one place: no read of a file or a network is without one."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds, in bytes unless the name says otherwise."""

    bundle_entries: int = 4096
    oci_index_bytes: int = 1 * MIB
    manifest_bytes: int = 1 * MIB
    signature_bytes: int = 4 * MIB
    description_bytes: int = 1 * MIB
    reference_bytes: int = 16 * MIB
    golden_bytes: int = 64 * MIB
    layer_bytes: int = 8 * GIB
    bundle_bytes: int = 64 * GIB
    variants: int = 64
    files_per_variant: int = 64

    desired_bytes: int = 64 * KIB
    keyring_bytes: int = 256 * KIB
    message_bytes: int = 256 * KIB
    enrol_answer_bytes: int = 1 * MIB
    join_string_bytes: int = 4 * KIB
    json_depth: int = 32

    request_body_bytes: int = 64 * MIB
    request_json_bytes: int = 16 * MIB
    request_header_bytes: int = 16 * KIB
    config_bytes: int = 256 * KIB
    key_file_bytes: int = 64 * KIB
    revocation_list_bytes: int = 16 * MIB


LIMITS = Limits()
