"""Alembic's entry: run the migrations on the connection that the service handed over."""

from __future__ import annotations

from alembic import context

from edgepack_fleet.db.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
