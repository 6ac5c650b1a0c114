"""The language of `--where`: conditions over the columns of a trial, read as Python and answered by the database.

    latency_ratio < 0.6 and kl <= 0.1
    1e9 < memory_bytes <= 24 * 1024 * 1024 * 1024
    solver in ("mip", "greedy") and lm_loss is not None
    created_at >= "2026-11-01"

Python's grammar and precedence, chained comparisons included, parsed with `ast` and translated node by node: nothing
is evaluated. A comparison with an empty column, or with a division by zero, is neither true nor false, and nor is its
`not`: as in SQL, neither matches. `is None` asks for an empty column. Numbers are 64-bit floats. Text compares with ==,
!= and in; a moment in ISO 8601, UTC unless it says otherwise, with every comparison.

This file knows the trial's columns. It does not know the store, the database, or what the numbers mean.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Literal

from sqlalchemy import JSON, ColumnElement, Double, Text, and_, cast, false, func, literal, not_, or_
from sqlalchemy import Column as TableColumn

from db.errors import QueryError
from db.models import TrialRow, Utc
from db.rows import table_of

Kind = Literal["number", "text", "moment"]

LONGEST, DEEPEST = 2000, 50
"""Characters and nesting beyond these are refused, before Python's or the database's own limits are met."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], ColumnElement[Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: left / func.nullif(right, 0.0),  # PostgreSQL would fail on 0, SQLite would not
}
_EQUALITY: dict[type[ast.cmpop], Callable[[Any, Any], ColumnElement[bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], ColumnElement[bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_LANGUAGE = "use columns, numbers, strings, + - * /, comparisons, in (...), is None, and, or, not"


def condition(expression: str) -> ColumnElement[bool]:
    """The condition `expression` says, over the columns of a trial; true or false for every row.

    Raises QueryError.
    """
    source = expression.strip()
    if not source:
        raise QueryError(f"the condition is empty; {_LANGUAGE}")
    if len(source) > LONGEST:
        raise QueryError(f"the condition has {len(source)} characters; {LONGEST} are the most")
    try:
        tree = ast.parse(source, mode="eval")
    except SyntaxError as error:
        message = f"this is not a condition ({error.msg}); {_LANGUAGE}"
        raise QueryError(_pointing(source, message, error.lineno, error.offset)) from error
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL byte; a chain too long to nest
        raise QueryError(f"this is not a condition ({error}); {_LANGUAGE}") from error
    # Not known is no match.
    return func.coalesce(_Reading(source).condition(tree.body, 0), false())


def column(name: str) -> ColumnElement[Any]:
    """The column of a trial called `name`. Raises QueryError, with the nearest name, where there is none."""
    if name not in _COLUMNS:
        nearest = get_close_matches(name, _COLUMNS, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise QueryError(f"no column {name!r}{hint}\ncolumns: {', '.join(_COLUMNS)}")
    return _COLUMNS[name]


# JSON columns are for reading, not for asking: the databases spell their insides differently.
_COLUMNS: dict[str, TableColumn[Any]] = {
    name: column for name, column in table_of(TrialRow).columns.items() if not isinstance(column.type, JSON)
}


@dataclass(frozen=True)
class _Value:
    kind: Kind
    sql: ColumnElement[Any]


@dataclass(frozen=True)
class _Reading:
    """One pass over one condition. Holds the source only to point into it."""

    source: str

    def condition(self, node: ast.expr, depth: int) -> ColumnElement[bool]:
        self._check(node, depth)
        match node:
            case ast.BoolOp(op=op, values=parts):
                join = and_ if isinstance(op, ast.And) else or_
                return join(*(self.condition(part, depth + 1) for part in parts))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not_(self.condition(operand, depth + 1))
            case ast.Compare(left=left, ops=ops, comparators=rights):
                lefts = [left, *rights[:-1]]
                steps = zip(lefts, ops, rights, strict=True)
                return and_(*(self.comparison(one, op, other, depth + 1) for one, op, other in steps))
        self.value(node, depth)  # a mistake inside it is the better message
        raise self.wrong(node, "this is a value, not a condition; compare it with something")

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> ColumnElement[bool]:
        one = self.value(left, depth)
        match op:
            case ast.Is() | ast.IsNot():
                if not (isinstance(right, ast.Constant) and right.value is None):
                    raise self.wrong(right, "`is` asks for None only; compare with ==")
                return one.sql.is_(None) if isinstance(op, ast.Is) else one.sql.is_not(None)
            case ast.In() | ast.NotIn():
                pairs = self.items(left, one, right, depth)
                alike = one.sql.in_([item.sql for each, item in pairs if each is one])
                # Text beside a column of moments is a moment there.
                found = or_(alike, *(each.sql == item.sql for each, item in pairs if each is not one))
                return found if isinstance(op, ast.In) else not_(found)
        one, other = self.alike(left, one, right, self.value(right, depth))
        compare = _EQUALITY.get(type(op)) or _ORDER[type(op)]
        if type(op) in _ORDER and one.kind == "text":
            raise self.wrong(right, "text has no order here (databases differ); compare it with ==, != or in")
        return compare(one.sql, other.sql)

    def items(self, left: ast.expr, one: _Value, right: ast.expr, depth: int) -> list[tuple[_Value, _Value]]:
        """The values that `one` may equal, each paired with it in the same kind."""
        if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
            raise self.wrong(right, "`in` needs a list, like (1, 2); a list of one has a comma too: (1,)")
        return [self.alike(left, one, item, self.value(item, depth + 1)) for item in right.elts]

    def value(self, node: ast.expr, depth: int) -> _Value:
        self._check(node, depth)
        match node:
            case ast.Name(id=name):
                return self.column(node, name)
            case ast.Constant(value=None):
                raise self.wrong(node, "None compares with `is None` and `is not None`")
            case ast.Constant(value=str(text)):
                return _Value("text", literal(text, Text()))
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return self.number(node, number)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                inner = self.numeric(operand, depth + 1)
                return _Value("number", -inner if isinstance(op, ast.USub) else inner)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                sql = _ARITHMETIC[type(op)](self.numeric(left, depth + 1), self.numeric(right, depth + 1))
                return _Value("number", sql)
        raise self.wrong(node, f"this is not part of the language; {_LANGUAGE}")

    def numeric(self, node: ast.expr, depth: int) -> ColumnElement[Any]:
        value = self.value(node, depth)
        if value.kind != "number":
            raise self.wrong(node, f"this is a {value.kind}; arithmetic needs numbers")
        return value.sql

    def column(self, node: ast.expr, name: str) -> _Value:
        try:
            found = column(name)
        except QueryError as error:
            message, _, columns = str(error).partition("\n")
            raise QueryError(f"{self.wrong(node, message)}\n{columns}") from None
        if isinstance(found.type, Utc):
            return _Value("moment", found)
        kind = found.type.python_type
        if kind is int:  # as a float, so that no product of two overflows
            return _Value("number", cast(found, Double()))
        return _Value("number" if kind is float else "text", found)

    def number(self, node: ast.expr, number: int | float) -> _Value:
        try:
            value = float(number)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.wrong(node, "this number is too large")
        return _Value("number", literal(value, Double()))

    def alike(self, left: ast.expr, one: _Value, right: ast.expr, other: _Value) -> tuple[_Value, _Value]:
        """Both sides in one kind: a text beside a moment is read as a moment."""
        if {one.kind, other.kind} == {"moment", "text"}:
            one, other = self.moment(left, one), self.moment(right, other)
        if one.kind != other.kind:
            raise self.wrong(right, f"this is a {other.kind}, but it is compared with a {one.kind}")
        return one, other

    def moment(self, node: ast.expr, value: _Value) -> _Value:
        text = node.value if isinstance(node, ast.Constant) else None
        if not isinstance(text, str):
            return value
        try:
            moment = datetime.fromisoformat(text)
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            why = "this is not a moment; write it like 2026-11-01 or 2026-11-01T12:00+01:00"
            raise self.wrong(node, why) from error
        return _Value("moment", literal(moment, Utc()))

    def wrong(self, node: ast.expr, why: str) -> QueryError:
        line = self.source.encode().splitlines()[node.lineno - 1]  # `ast` counts bytes
        end = node.end_col_offset if node.end_lineno == node.lineno else len(line)
        start, stop = (len(line[:offset].decode()) for offset in (node.col_offset, end))
        return QueryError(_pointing(self.source, why, node.lineno, start + 1, stop - start))

    def _check(self, node: ast.expr, depth: int) -> None:
        if depth > DEEPEST:
            raise self.wrong(node, f"this is nested more than {DEEPEST} deep; use fewer parentheses")


def _pointing(source: str, message: str, line: int | None, column: int | None, width: int = 1) -> str:
    """`message` over the line of `source` it is about, with carets. Lines and columns count from 1."""
    lines = re.split(r"\r\n|\r|\n", source)
    text = lines[min(line or 1, len(lines)) - 1]
    return f"{message}\n  {text}\n  {' ' * ((column or 1) - 1)}{'^' * max(1, width)}"
