"""The bytes of the weights alone, and their bits per weight of the parent."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "file_bytes": sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
    "bits_per_weight": sa.Double(),
}


def upgrade() -> None:
    """They are unknown for existing trials."""
    for name, type in _COLUMNS.items():
        op.add_column("trial", sa.Column(f"predicted_{name}", type, nullable=True))
        op.add_column("trial", sa.Column(name, type, nullable=True))
