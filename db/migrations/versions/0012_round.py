"""The tokens on which the layers of a child were trained through their rounding."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """They are unknown for existing trials."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("trial", sa.Column("round_tokens", whole, nullable=True))
