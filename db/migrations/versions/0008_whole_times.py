"""Whole architectures timed beside the parent."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "whole_time",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("search_id", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("take", _NUMBER, nullable=False),
        sa.Column("prefill_s", sa.Double(), nullable=False),
        sa.Column("parent_prefill_s", sa.Double(), nullable=False),
        sa.Column("prefill_spread", sa.Double(), nullable=False),
        sa.Column("contention", sa.Double(), nullable=False),
        sa.Column("decode_s", sa.Double()),
        sa.Column("parent_decode_s", sa.Double()),
        sa.Column("decode_spread", sa.Double()),
        sa.ForeignKeyConstraint(["search_id"], ["search.id"], name="fk_whole_time_search_id"),
        sa.PrimaryKeyConstraint("id", name="pk_whole_time"),
        sa.UniqueConstraint("search_id", "architecture", "take", name="uq_whole_time_search_id"),
    )
    op.create_index("ix_whole_time_search_id", "whole_time", ["search_id"])
