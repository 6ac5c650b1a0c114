"""Whether costs are corrected by the time of a whole architecture."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Those that are there only check costs."""
    op.add_column("whole_time", sa.Column("corrects", sa.Boolean(), nullable=False, server_default=sa.false()))
