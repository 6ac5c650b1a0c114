"""The losses of a child while it was healed."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """They are unknown for existing trials."""
    op.add_column("trial", sa.Column("heal_curve", sa.JSON(), nullable=True))
