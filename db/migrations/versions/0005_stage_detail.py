"""A stage without the details that nothing wrote."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.drop_column("stage", "detail")
