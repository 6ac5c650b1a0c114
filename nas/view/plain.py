"""A row as plain values, for JSON and for data frames."""

from datetime import datetime
from typing import Any


def plain(row: Any) -> dict[str, Any]:
    """A database row as JSON takes it."""
    return {column.name: _jsonable(getattr(row, column.name)) for column in row.__table__.columns}


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
