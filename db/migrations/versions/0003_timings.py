"""How far times may be off, and what CPU contention they were taken under, with the times themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COST = ("prefill_error_s", "decode_error_s", "contention")
_TRIAL = (
    "predicted_latency_error_s", "predicted_ttft_error_s", "predicted_decode_error_s", "predicted_contention",
    "ttft_spread", "decode_spread", "contention",
)  # fmt: skip


def upgrade() -> None:
    """It is unknown for existing rows, but for a skipped slot: that runs nothing, and takes no time for certain."""
    for table, columns in {"cost": _COST, "trial": _TRIAL}.items():
        for name in columns:
            op.add_column(table, sa.Column(name, sa.Double(), nullable=True))
    cost = sa.table("cost", sa.column("name", sa.Text()), *(sa.column(name, sa.Double()) for name in _COST))
    op.get_bind().execute(cost.update().where(cost.c.name == "skip").values(dict.fromkeys(_COST, 0.0)))
    search = sa.table("search", sa.column("id", sa.Text()), sa.column("parent_costs", sa.JSON()))
    connection = op.get_bind()
    for identity, costs in connection.execute(sa.select(search.c.id, search.c.parent_costs)).all():
        unknown = {part: cost | dict.fromkeys(_COST) for part, cost in costs.items()}
        connection.execute(search.update().where(search.c.id == identity).values(parent_costs=unknown))
