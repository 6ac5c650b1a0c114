"""Learning rates that were tried for a parent, and where a search has its own from."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """It is unknown for existing searches, which may have had the default or the job's."""
    op.add_column("search", sa.Column("rate_source", sa.Text(), nullable=True))
    op.create_table(
        "tune_trial",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("key", "study", "parent_digest", "schedule")),
        *(sa.Column(name, _whole(), nullable=False) for name in ("number", "tokens", "batch")),
        sa.Column("lora_rank", _whole(), nullable=True),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("warmup", "weight_decay", "learning_rate")),
        sa.Column("objective", sa.Double(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("layers", "choices", "points")),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_tune_trial"),
        sa.CheckConstraint("state IN ('complete', 'pruned')", name=op.f("ck_tune_trial_state")),
    )
    op.create_index("ix_tune_trial_study", "tune_trial", ["study"])
    op.create_index("ix_tune_trial_parent_digest", "tune_trial", ["parent_digest"])


def _whole() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")
