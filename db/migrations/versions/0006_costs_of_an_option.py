"""An option names the costs that add up to its own, and no sum of them is kept as if it were measured."""

from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_SUM, _NOTHING = " + ", "skip"
"""A sum was named by its parts, and that of no parts "skip"."""

_OPTION = sa.table(
    "option",
    *(sa.column(name, sa.Text()) for name in ("search_id", "choice", "cost_key")),
    sa.column("cost_keys", sa.JSON()),
)
_COST = sa.table("cost", sa.column("key", sa.Text()), sa.column("name", sa.Text()))


def upgrade() -> None:
    """A sum some part of which is not among its search's options stays a row, named as the option's only cost, until
    the search runs again."""
    op.add_column("option", sa.Column("cost_keys", sa.JSON(), nullable=False, server_default="[]"))
    connection = op.get_bind()
    names = {key: name for key, name in connection.execute(sa.select(_COST.c.key, _COST.c.name))}
    kept: set[str] = set()
    replaced: set[str] = set()
    for search_id, options in _options(connection):
        own = {names[key]: key for key in options.values() if key in names and not _is_sum(names[key])}
        for choice, key in options.items():
            name = names.get(key, "")  # An option without a key is not measured: no row has the key "".
            parts = name.split(_SUM) if name != _NOTHING else []
            keys = [own[part] for part in parts] if _is_sum(name) and own.keys() >= {*parts} else [key]
            (kept if keys == [key] else replaced).add(key)
            row = (_OPTION.c.search_id == search_id) & (_OPTION.c.choice == choice)
            connection.execute(sa.update(_OPTION).where(row).values(cost_keys=keys))
    for key in replaced - kept:
        connection.execute(sa.delete(_COST).where(_COST.c.key == key))
    op.drop_column("option", "cost_key")


def _is_sum(name: str) -> bool:
    return _SUM in name or name == _NOTHING


def _options(connection: sa.Connection) -> Iterator[tuple[str, dict[str, str]]]:
    """Each search's options, with the key of each's cost."""
    rows = connection.execute(sa.select(_OPTION.c.search_id, _OPTION.c.choice, _OPTION.c.cost_key))
    found: dict[str, dict[str, str]] = {}
    for search_id, choice, key in rows:
        found.setdefault(search_id, {})[choice] = key or ""
    yield from found.items()
