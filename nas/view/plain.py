"""Rows and answers as plain values, for JSON and for data frames."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from db import models


def plain(row: Any) -> dict[str, Any]:
    """A database row as JSON takes it."""
    return {column.name: _jsonable(getattr(row, column.name)) for column in row.__table__.columns}


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def answered(search: "models.SearchRow", trial: "models.TrialRow") -> dict[str, Any]:
    """A trial as JSON takes it, the verdict on its budget and on each limit, what being plain costs, and what to be
    told of it."""
    from nas.solve.budget_loop import of_all, verdicts
    from nas.solve.caution import cautions

    found = verdicts(search, trial)
    verdict = {"verdict": of_all(found.values()), "verdicts": found}
    return plain(trial) | verdict | {"plain": trial.plain} | {"cautions": list(cautions(search, trial))}
