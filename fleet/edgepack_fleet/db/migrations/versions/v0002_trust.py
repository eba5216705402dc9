"""Enrolment, certificates, people who log in, and the limits of tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = (
    "join_tokens",
    "preauthorised",
    "enrolments",
    "certificates",
    "users",
    "passkeys",
    "login_codes",
    "browser_sessions",
)
DEVICE_COLUMNS = ("certificate_expires_ms", "birth_at_ms", "clone_seen_ms")
TOKEN_COLUMNS = ("bundles", "groups")


def upgrade() -> None:
    """Apply the step."""
    for name in DEVICE_COLUMNS:
        op.add_column("devices", sa.Column(name, sa.BigInteger(), nullable=True))
    for name in TOKEN_COLUMNS:
        every = sa.Column(name, sa.JSON(), nullable=False, server_default='["*"]')
        op.add_column("tokens", every)
    _create_enrolment()
    _create_people()


def downgrade() -> None:
    """Undo the step."""
    for table in reversed(TABLES):
        op.drop_table(table)
    for table, names in (("tokens", TOKEN_COLUMNS), ("devices", DEVICE_COLUMNS)):
        with op.batch_alter_table(table) as batch:
            for name in names:
                batch.drop_column(name)


def _create_enrolment() -> None:
    op.create_table(
        "join_tokens",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("max_uses", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("hash"),
    )
    op.create_table(
        "preauthorised",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sa.UniqueConstraint("device"),
    )
    op.create_table(
        "enrolments",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("token", sa.String(length=63), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        *_times("asked_ms"),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_index("ix_enrolments_status", "enrolments", ["status"])
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("authority", sa.String(length=64), nullable=False),
        sa.Column("pem", sa.String(), nullable=False),
        sa.Column("issued_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=True),
        sa.Column("evicted_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("serial"),
    )
    op.create_index("ix_certificates_device", "certificates", ["device"])
    op.create_index("ix_certificates_revoked_ms", "certificates", ["revoked_ms"])


def _create_people() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("bundles", sa.JSON(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "passkeys",
        sa.Column("credential", sa.String(length=1400), nullable=False),
        _user(),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sign_count", sa.BigInteger(), nullable=False),
        *_times("created_ms"),
        sa.Column("last_used_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("credential"),
        sa.ForeignKeyConstraint(["user"], ["users.name"]),
    )
    op.create_table(
        "login_codes",
        sa.Column("hash", sa.String(length=64), nullable=False),
        _user(),
        *_times("created_ms", "expires_ms"),
        sa.PrimaryKeyConstraint("hash"),
        sa.ForeignKeyConstraint(["user"], ["users.name"]),
    )
    op.create_table(
        "browser_sessions",
        sa.Column("hash", sa.String(length=64), nullable=False),
        _user(),
        *_times("created_ms", "expires_ms"),
        sa.Column("last_used_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("hash"),
        sa.ForeignKeyConstraint(["user"], ["users.name"]),
    )
    for table in ("passkeys", "login_codes", "browser_sessions"):
        op.create_index(f"ix_{table}_user", table, ["user"])


def _user() -> sa.Column[str]:
    return sa.Column("user", sa.String(length=63), nullable=False)


def _times(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in names]
