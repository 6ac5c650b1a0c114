"""How Alembic runs our revisions: on the connection, and inside the transaction, that `db/migrate.py` hands it.

There is no `alembic.ini`. To change the schema, change `db/models.py`, write the next file in `versions/` by hand and
move `HEAD` in `db/migrate.py`; `tests/test_db.py` compares what the revisions build with the models and shows what is
missing.
"""

from alembic import context

from db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=context.config.attributes["version_table"],
)
with context.begin_transaction():
    context.run_migrations()
