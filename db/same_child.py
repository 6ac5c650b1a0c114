"""Trials of one child, whatever they were proposed for: a measurement of one holds for all.

Trials of one search and one architecture have the same shape. So they share the columns that healing, and training
through rounding, do not change. Trials that are healed and rounded alike have one child key, and share all. This
file knows which columns; the store decides when they are written.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from db.errors import NotFoundError
from db.models import OF_THE_CHILD, OF_THE_HEALED, TrialRow

LARGEST = 2**63 - 1
"""The largest whole number that a database takes."""


def the_trial(session: Session, trial_id: int, to_write: bool = False) -> TrialRow:
    """`to_write`: nobody else writes it until the transaction ends. Raises NotFoundError where there is none."""
    is_number = abs(trial_id) <= LARGEST  # beyond it the driver fails
    trial = session.get(TrialRow, trial_id) if is_number else None
    if trial is None:
        raise NotFoundError(f"no trial has the id {trial_id}")
    if to_write:
        lock(session, trial)
    return trial


def forget(session: Session, rows: Sequence[TrialRow]) -> list[str]:
    """Delete trials; what was measured of them stays with other trials of the same child. Returns the keys of the
    children that no trial is any more."""
    for row in rows:
        share(session, row, [name for name in OF_THE_CHILD if getattr(row, name) is not None], fill=True)
    for row in rows:
        session.delete(row)
    session.flush()
    gone = list(dict.fromkeys(row.child_key for row in rows))
    of_child = select(TrialRow.id).where(TrialRow.child_key == bindparam("key")).limit(1)
    return [key for key in gone if session.scalar(of_child, {"key": key}) is None]


def lock(session: Session, trial: TrialRow) -> None:
    """It and its twins, which are written together: in one order, or two writers on PostgreSQL could wait for each
    other. Rows that are loaded already are loaded again."""
    query = select(TrialRow).where(TrialRow.search_id == trial.search_id, TrialRow.architecture == trial.architecture)
    session.scalars(query.order_by(TrialRow.id).with_for_update().execution_options(populate_existing=True)).all()


def _twins(session: Session, row: TrialRow) -> list[tuple[TrialRow, tuple[str, ...]]]:
    """The other trials of its architecture, the same child first, each with the columns that both share."""
    query = select(TrialRow).where(
        TrialRow.search_id == row.search_id, TrialRow.architecture == row.architecture, TrialRow.id != row.id
    )
    found = sorted(session.scalars(query.order_by(TrialRow.id)), key=lambda twin: twin.child_key != row.child_key)
    shape = tuple(name for name in OF_THE_CHILD if name not in OF_THE_HEALED)
    return [(twin, OF_THE_CHILD if twin.child_key == row.child_key else shape) for twin in found]


def with_twins(session: Session, row: TrialRow) -> TrialRow:
    """Fill the unknown values of a trial's child from other trials with the same child, or the same but for
    healing and rounding."""
    for twin, alike in _twins(session, row):
        for name in alike:
            if getattr(row, name) is None:
                setattr(row, name, getattr(twin, name))
        if twin.of_parent:
            # The parent's times beside the child are shared; a budget or a format is each trial's own.
            row.details = merged({"parent": twin.of_parent}, row.details)
    return row


def share(session: Session, row: TrialRow, names: Collection[str], fill: bool = False) -> None:
    """Write these columns of a trial into its twins: into all of them, or to `fill` what they lack."""
    if not names:
        return
    for twin, alike in _twins(session, row):
        for name in alike:
            if name in names and not (fill and getattr(twin, name) is not None):
                setattr(twin, name, getattr(row, name))
        if row.of_parent:
            parent = {"parent": row.of_parent}
            twin.details = merged(parent, twin.details) if fill else merged(twin.details, parent)


def merged(details: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Details with more put into them, where None takes one away and the parent's are put into the parent's."""
    found = details | more
    if details.get("parent") and more.get("parent"):
        found["parent"] = details["parent"] | more["parent"]
    return {name: value for name, value in found.items() if value is not None}
