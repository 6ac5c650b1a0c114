"""Which text a search's scores are of, so that searches of one text can be told from others."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """It is unknown for existing searches until they run again."""
    op.add_column("search", sa.Column("score_text", sa.Text(), nullable=True))
