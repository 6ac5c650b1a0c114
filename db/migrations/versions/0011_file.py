"""The bytes of the weights alone, beside those of weights and cache."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """They are unknown for existing trials."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for name in ("predicted_file_bytes", "file_bytes"):
        op.add_column("trial", sa.Column(name, whole, nullable=True))
