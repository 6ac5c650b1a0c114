"""Valid writes: a row, or some columns of one, as plain values checked against the table.

This file knows the models' types and that a number must be finite. It does not know any database.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Table
from sqlalchemy import inspect as mapped

from db.errors import RowError
from db.models import Base, Utc


def table_of(model: type[Base]) -> Table:
    table = model.__table__
    assert isinstance(table, Table)
    return table


def values(row: Base) -> dict[str, Any]:
    """Every column of `row`, but for an id the database has yet to count.

    Raises RowError where a value is NaN, infinite or of another type than its column.
    """
    names = mapped(type(row)).column_attrs.keys()
    written = {name: getattr(row, name) for name in names}
    if written.get("id", "") is None:
        del written["id"]
    name = written.get("key") or written.get("choice") or written.get("id") or "new"
    return checked(type(row), written, f"{table_of(type(row)).name} {name}")


def checked(model: type[Base], written: Mapping[str, Any], row: str) -> dict[str, Any]:
    """`written`, some columns of one row of `model`, as the values to hand to the driver. `row` names it in errors.

    Raises RowError as `values` does, and for a column the table has not.
    """
    table = table_of(model)
    unknown = sorted(written.keys() - table.columns.keys())
    if unknown:
        raise RowError(f"{row}: there is no column {', '.join(unknown)}; there are {', '.join(table.columns.keys())}")
    return {name: _value(table.columns[name], value, f"{row}, column {name}") for name, value in written.items()}


def _value(column: Column[Any], value: Any, place: str) -> Any:
    if value is None:
        if not column.nullable:
            raise RowError(f"{place}: it is empty; every row needs it")
        return None
    if isinstance(column.type, JSON):
        _check_json(value, place)
        return value
    kind = datetime if isinstance(column.type, Utc) else column.type.python_type
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        _check_finite(value, place)
        return float(value)
    # Strictly, since SQLite takes anything: it would keep a numpy integer as a blob.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RowError(f"{place}: {value!r} is a {type(value).__name__}, not a {kind.__name__}")
    if isinstance(value, datetime) and value.tzinfo is None:
        raise RowError(f"{place}: {value} says no time zone; use datetime.now(UTC)")
    return value


def _check_finite(value: float, place: str) -> None:
    if not math.isfinite(value):
        raise RowError(f"{place}: {value} is not a finite number")


def _check_json(value: Any, place: str) -> None:
    """JSON has no NaN either; Python's writer would put one in."""
    match value:
        case dict():
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise RowError(f"{place}: the key {key!r} is a {type(key).__name__}, not a str")
                _check_json(inner, f"{place}.{key}")
        case list() | tuple():
            for index, inner in enumerate(value):
                _check_json(inner, f"{place}[{index}]")
        case float():
            _check_finite(value, place)
        case None | bool() | int() | str():
            pass
        case _:
            raise RowError(f"{place}: {value!r} is a {type(value).__name__}, which JSON does not have")
