"""Costs written in place of others, and the parent's sum that they were part of.

This file knows what depends on a cost. The caller of the store decides when costs are replaced.
"""

from collections.abc import Sequence
from itertools import chain

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.models import CostRow, OptionRow, SearchRow
from db.rows import values


def replace_costs(session: Session, insert: sqlite.Insert | postgresql.Insert, rows: Sequence[CostRow]) -> None:
    """Write each, in place of what its key had. A search that has an option of such a cost loses the sum that says it
    is measured to the end: its run sums again. Raises RowError.
    """
    # In one order for all writers, or two on PostgreSQL could wait for each other.
    written = sorted((values(row) for row in rows), key=lambda row: str(row["key"]))
    if not written:
        return
    changed = {name: insert.excluded[name] for name in written[0] if name != "key"}
    session.execute(insert.on_conflict_do_update(index_elements=["key"], set_=changed), written)
    keys = {row["key"] for row in written}
    for search in session.scalars(select(SearchRow).order_by(SearchRow.id).with_for_update()):
        used = session.scalars(select(OptionRow.cost_keys).where(OptionRow.search_id == search.id))
        if keys.intersection(chain.from_iterable(used)):
            search.parent_costs = {part: cost for part, cost in search.parent_costs.items() if part != "fixed"}
