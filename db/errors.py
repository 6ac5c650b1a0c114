"""Errors about a database, a question to it, or a row. Standard library only."""

from nas.errors import NasError


class StoreError(NasError):
    """The base of this room's errors."""


class DatabaseError(StoreError, ValueError):
    """A database cannot be used as it is. Says which one, why, and what to do."""


class DatabaseTooNewError(DatabaseError):
    """The database was written by a later version of this package."""


class ForeignDatabaseError(DatabaseError):
    """The database is not one of ours."""


class QueryError(StoreError, ValueError):
    """A condition, or a column to sort by, cannot be read. Points at the offending part."""


class NotFoundError(StoreError, ValueError):
    """No search or trial is called so, or several are."""


class RowError(StoreError, ValueError):
    """A value may not be written. Says the table, the row and the column."""
