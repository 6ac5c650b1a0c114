"""Results of lm_eval, child and parent."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "evaluation",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("key", "child_key", "run", "task", "version")),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("higher_is_better", sa.Boolean(), nullable=True),
        sa.Column("shots", _whole(), nullable=False),
        sa.Column("limit", _whole(), nullable=True),
        sa.Column("is_chat", sa.Boolean(), nullable=False),
        sa.Column("samples", _whole(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("parent_value", "child_value")),
        *(sa.Column(f"{name}_error", sa.Double(), nullable=True) for name in ("parent", "child", "difference")),
        sa.Column("is_paired", sa.Boolean(), nullable=False),
        sa.Column("harness", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_evaluation"),
    )
    op.create_index("ix_evaluation_child_key", "evaluation", ["child_key"])


def _whole() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")
