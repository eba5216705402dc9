"""The tables. Times are integers: milliseconds since 1970 UTC.

What another part of edgepack decides is stored as that part's own JSON document (rollouts, desired
documents, windows) with the columns that queries need beside it; nothing is decided from a column
that the document does not say too.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The root of the mapped tables."""

    type_annotation_map = {  # noqa: RUF012  (a class attribute that SQLAlchemy reads)
        int: BigInteger,
        bytes: LargeBinary,
        dict[str, Any]: JSON,
        dict[str, str]: JSON,
        list[str]: JSON,
        list[dict[str, Any]]: JSON,
    }


class Device(Base):
    """A device: who it is, what it last said, and when.

    ``clock_offset_ms`` is what to add to its clock to get the fleet's: the least delay from a
    message's own time to its arrival that this session has shown. ``certificate_expires_ms`` is the
    end of its newest certificate. ``birth_at_ms`` is the latest at which its session can have
    begun: the later of what its own clock and the fleet's said; ``clone_seen_ms`` is when a second
    holder of its identity was heard last.
    """

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63))
    status: Mapped[str] = mapped_column(String(16), default="accepted")
    enrolment: Mapped[str] = mapped_column(String(64))
    public_key: Mapped[str]
    mac_key: Mapped[bytes]
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    created_ms: Mapped[int]
    hardware_class: Mapped[str] = mapped_column(String(128), default="unknown")
    presence: Mapped[str] = mapped_column(String(16), default="unknown")
    last_seen_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)
    session: Mapped[int] = mapped_column(default=0)
    state_sequence: Mapped[int] = mapped_column(default=0)
    birth_sequence: Mapped[int] = mapped_column(default=0)
    reported_sequence: Mapped[int] = mapped_column(default=0)
    health_sequence: Mapped[int] = mapped_column(default=0)
    clock_offset_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)
    generation_seen: Mapped[int] = mapped_column(default=0)
    epoch_seen: Mapped[int] = mapped_column(default=0)
    refused: Mapped[str | None] = mapped_column(default=None)
    birth: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)
    reported: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)
    health: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)
    certificate_expires_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)
    birth_at_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)
    clone_seen_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)


class JoinTokenRow(Base):
    """A join token: only its SHA-256 is kept. ``mode`` is ``pending`` or ``auto``."""

    __tablename__ = "join_tokens"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    mode: Mapped[str] = mapped_column(String(16))
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    uses: Mapped[int] = mapped_column(default=0)
    max_uses: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(128))
    created_ms: Mapped[int]
    expires_ms: Mapped[int]


class PreauthorisedRow(Base):
    """A device that is accepted when it asks with this key; ``key`` is its fingerprint."""

    __tablename__ = "preauthorised"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), unique=True)
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    created_ms: Mapped[int]


class EnrolmentRow(Base):
    """The last wish to join under an id; ``status`` is ``pending``, ``accepted`` or ``rejected``.

    ``key`` is the fingerprint of the key that asked, ``token_hash`` that of the join token it
    showed, ``labels`` what it will be given.
    """

    __tablename__ = "enrolments"

    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    status: Mapped[str] = mapped_column(String(16), index=True)
    key: Mapped[str] = mapped_column(String(64))
    public_key: Mapped[str]
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    token: Mapped[str] = mapped_column(String(63))
    token_hash: Mapped[str] = mapped_column(String(64))
    asked_ms: Mapped[int]


class CertificateRow(Base):
    """A device certificate that was issued; ``serial`` is hex.

    ``authority`` is the fingerprint of its issuer's key, on whose list it is once revoked.
    ``evicted_ms`` is when its device's session at the broker was last ended because of that.
    """

    __tablename__ = "certificates"

    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    authority: Mapped[str] = mapped_column(String(64))
    pem: Mapped[str]
    issued_ms: Mapped[int]
    expires_ms: Mapped[int]
    revoked_ms: Mapped[int | None] = mapped_column(BigInteger, default=None, index=True)
    evicted_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)


class Group(Base):
    """Devices by labels (every label equal) or by list; exactly one of the two is set."""

    __tablename__ = "groups"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    labels: Mapped[dict[str, str] | None] = mapped_column(JSON, default=None)
    members: Mapped[list[str] | None] = mapped_column(JSON, default=None)
    created_ms: Mapped[int]


class Bundle(Base):
    """A verified bundle of the store.

    ``oci_index`` holds the exact bytes of the bundle index, ``tags`` every tag of its layout with
    the digest it names, ``variants`` and ``description`` what people look at.
    """

    __tablename__ = "bundles"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71), unique=True)
    security_version: Mapped[int]
    size: Mapped[int]
    signed_by: Mapped[str] = mapped_column(String(64))
    oci_index: Mapped[bytes]
    tags: Mapped[dict[str, str]]
    variants: Mapped[list[dict[str, Any]]]
    description: Mapped[dict[str, Any]]
    pushed_ms: Mapped[int]


class RolloutRow(Base):
    """A rollout: ``document`` is the whole of it; ``revision`` grows with every change."""

    __tablename__ = "rollouts"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    slot: Mapped[str] = mapped_column(String(63))
    bundle_name: Mapped[str] = mapped_column(String(63))
    bundle_version: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(71))
    state: Mapped[str] = mapped_column(String(32), index=True)
    document: Mapped[bytes]
    revision: Mapped[int] = mapped_column(default=1)
    created_ms: Mapped[int]
    updated_ms: Mapped[int]


class RolloutEventRow(Base):
    """One decision. Append-only; ``hash`` covers ``previous_hash`` and ``body``."""

    __tablename__ = "rollout_events"

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    at_ms: Mapped[int]
    actor: Mapped[str] = mapped_column(String(128))
    cause: Mapped[str] = mapped_column(String(64))
    words: Mapped[str]
    body: Mapped[bytes]
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class DesiredSlot(Base):
    """What one slot of one device should run, and who decided it."""

    __tablename__ = "desired_slots"

    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(63), primary_key=True)
    bundle_name: Mapped[str] = mapped_column(String(63))
    digest: Mapped[str] = mapped_column(String(71))
    probation: Mapped[dict[str, Any]]
    retry_blocked: Mapped[list[str]] = mapped_column(default=list)
    decided_by: Mapped[str] = mapped_column(String(128))
    changed_ms: Mapped[int]


class DesiredDocument(Base):
    """The signed document a device was last told to obey: ``envelope`` is what is published."""

    __tablename__ = "desired_documents"

    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    generation: Mapped[int]
    epoch: Mapped[int]
    enrolment: Mapped[str] = mapped_column(String(64))
    slots_digest: Mapped[str] = mapped_column(String(71))
    issued_ms: Mapped[int]
    expires_ms: Mapped[int] = mapped_column(index=True)
    topic: Mapped[str]
    signed_by: Mapped[str] = mapped_column(String(64))
    envelope: Mapped[bytes]


class OutboxRow(Base):
    """A message to publish, written in the transaction that decided it."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )  # only an INTEGER column counts by itself in SQLite
    topic: Mapped[str]
    payload: Mapped[bytes]
    retained: Mapped[bool]
    created_ms: Mapped[int]
    published_ms: Mapped[int | None] = mapped_column(BigInteger, default=None, index=True)


class ReceivedInterval(Base):
    """A run of sequences of (device, slot, session) that is committed; runs never touch."""

    __tablename__ = "received_intervals"

    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(63), primary_key=True)
    session: Mapped[int] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    last: Mapped[int]
    since_ms: Mapped[int]


class WindowRow(Base):
    """One telemetry window: ``body`` as it was sent, ``block`` what the gates count."""

    __tablename__ = "windows"
    __table_args__ = (
        Index("windows_by_digest", "digest", "device", "start_ms"),
        Index("windows_by_slot", "slot", "start_ms"),
    )

    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(63), primary_key=True)
    session: Mapped[int] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    last: Mapped[int]
    digest: Mapped[str] = mapped_column(String(71))
    start_ms: Mapped[int]
    end_ms: Mapped[int]
    n: Mapped[int]
    rows: Mapped[int]
    errors: Mapped[int]
    over_budget: Mapped[int]
    block: Mapped[bytes]
    body: Mapped[bytes]
    received_ms: Mapped[int]


class Gap(Base):
    """Sequences that never came and that the fleet no longer waits for."""

    __tablename__ = "gaps"

    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(63), primary_key=True)
    session: Mapped[int] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    last: Mapped[int]
    declared_ms: Mapped[int]


class DeviceEventRow(Base):
    """Something that happened on a device."""

    __tablename__ = "device_events"
    __table_args__ = (Index("device_events_by_time", "device", "at_ms"),)

    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    slot: Mapped[str] = mapped_column(String(63), primary_key=True)
    session: Mapped[int] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    digest: Mapped[str | None] = mapped_column(String(71))
    code: Mapped[str] = mapped_column(String(64))
    words: Mapped[str]
    evidence: Mapped[dict[str, Any]]
    at_ms: Mapped[int]
    received_ms: Mapped[int]


class LeaseRow(Base):
    """Who drives: ``epoch`` grows with every change of holder."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    epoch: Mapped[int]
    expires_ms: Mapped[int]


class TokenRow(Base):
    """A bearer token: only its SHA-256 is kept.

    ``bundles`` and ``groups`` are shell patterns of what it may push, roll out, and roll out to;
    ``["*"]`` is no limit.
    """

    __tablename__ = "tokens"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    bundles: Mapped[list[str]] = mapped_column(default=lambda: ["*"])
    groups: Mapped[list[str]] = mapped_column(default=lambda: ["*"])
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    last_used_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)


class UserRow(Base):
    """A person who may log in to the page, limited as a token is.

    ``password_hash`` is argon2id's own text form.
    """

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    bundles: Mapped[list[str]] = mapped_column(default=lambda: ["*"])
    groups: Mapped[list[str]] = mapped_column(default=lambda: ["*"])
    password_hash: Mapped[str | None] = mapped_column(default=None)
    created_ms: Mapped[int]


class PasskeyRow(Base):
    """A passkey of a person: WebAuthn's credential id, public key (COSE) and signature counter."""

    __tablename__ = "passkeys"

    credential: Mapped[str] = mapped_column(String(1400), primary_key=True)
    user: Mapped[str] = mapped_column(ForeignKey("users.name"), index=True)
    public_key: Mapped[bytes]
    sign_count: Mapped[int]
    created_ms: Mapped[int]
    last_used_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)


class LoginCodeRow(Base):
    """A one-time code that lets a person choose a passkey or a password; only its SHA-256."""

    __tablename__ = "login_codes"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user: Mapped[str] = mapped_column(ForeignKey("users.name"), index=True)
    created_ms: Mapped[int]
    expires_ms: Mapped[int]


class BrowserSessionRow(Base):
    """A browser that is logged in: only the SHA-256 of its cookie is kept."""

    __tablename__ = "browser_sessions"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user: Mapped[str] = mapped_column(ForeignKey("users.name"), index=True)
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    last_used_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)


class IdempotencyRow(Base):
    """The answer to a create, kept so that the same key gets the same answer."""

    __tablename__ = "idempotency"

    token: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    request_digest: Mapped[str] = mapped_column(String(71))
    status: Mapped[int]
    body: Mapped[bytes]
    created_ms: Mapped[int]


class AuditRow(Base):
    """Who did what. Append-only; ``hash`` covers ``previous_hash`` and the row."""

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at_ms: Mapped[int]
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(256))
    detail: Mapped[dict[str, Any]]
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))
