"""Joules beside the seconds."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_COST = ("prefill_j", "decode_j", "prefill_error_j", "decode_error_j")
_TRIAL = ("predicted_energy_j", "predicted_energy_error_j", "energy_j", "energy_ratio", "energy_spread")


def upgrade() -> None:
    """No meter was read of what is there already. A skipped slot runs nothing, and takes no joules."""
    for table, columns in {"cost": _COST, "trial": _TRIAL}.items():
        for name in columns:
            op.add_column(table, sa.Column(name, sa.Double(), nullable=True))
    connection = op.get_bind()
    cost = sa.table("cost", sa.column("name", sa.Text()), *(sa.column(name, sa.Double()) for name in _COST))
    connection.execute(cost.update().where(cost.c.name == "skip").values(dict.fromkeys(_COST, 0.0)))
    search = sa.table("search", sa.column("id", sa.Text()), sa.column("parent_costs", sa.JSON()))
    for identity, costs in connection.execute(sa.select(search.c.id, search.c.parent_costs)).all():
        unknown = {part: kept | dict.fromkeys(_COST) for part, kept in costs.items()}
        connection.execute(search.update().where(search.c.id == identity).values(parent_costs=unknown))
