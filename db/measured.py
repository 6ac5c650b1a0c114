"""Measured rows by their keys, and the options of a search with what is measured of each."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.evaluations import EvaluationRow, TaskGroupRow
from db.models import CostRow, DistillationRow, OptionRow, ScoreRow
from db.tuning import TuneTrialRow

_CHUNK = 500
"""Keys in one IN list; SQLite builds allow as few as 999 parameters."""

Measured = TypeVar("Measured", ScoreRow, CostRow, DistillationRow, EvaluationRow, TaskGroupRow, TuneTrialRow)


@dataclass(frozen=True)
class KnownOption:
    """An option with what has been measured of it so far."""

    option: OptionRow
    score: ScoreRow | None
    costs: tuple[CostRow, ...] | None
    """Those whose sum is the option's; None where one of them is not measured yet."""
    distillation: DistillationRow | None


def by_key(session: Session, model: type[Measured], keys: Collection[str]) -> dict[str, Measured]:
    """The rows of `keys` that are there."""
    asked = list(keys)
    found: dict[str, Measured] = {}
    for start in range(0, len(asked), _CHUNK):
        some = asked[start : start + _CHUNK]
        found |= {row.key: row for row in session.scalars(select(model).where(model.key.in_(some)))}
    return found


def known_options(session: Session, search_id: str) -> list[KnownOption]:
    """In slot order."""
    query = (
        select(OptionRow, ScoreRow, DistillationRow)
        .outerjoin(ScoreRow, OptionRow.score_key == ScoreRow.key)
        .outerjoin(DistillationRow, OptionRow.distillation_key == DistillationRow.key)
        .where(OptionRow.search_id == search_id)
        .order_by(OptionRow.first_slot, OptionRow.span, OptionRow.choice)
    )
    rows = list(session.execute(query))
    costs = by_key(session, CostRow, {key for option, _, _ in rows for key in option.cost_keys})
    return [
        KnownOption(option, score, _all_of(option.cost_keys, costs), distillation)
        for option, score, distillation in rows
    ]


def _all_of(keys: Collection[str], costs: dict[str, CostRow]) -> tuple[CostRow, ...] | None:
    return tuple(costs[key] for key in keys) if costs.keys() >= {*keys} else None
