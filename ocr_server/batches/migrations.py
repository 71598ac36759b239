"""Versions of the database's schema, and the steps from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, MetaData, inspect, text

_LOCK = 0x6F6372  # any number that all servers agree on

MIGRATIONS: Sequence[Sequence[str]] = (
    # To version 2: who began which request, and the time at which a server last ran.
    (
        "CREATE TABLE batch_deliveries (batch_id VARCHAR(64) NOT NULL, line INTEGER NOT NULL, "
        "holder VARCHAR(64) NOT NULL, PRIMARY KEY (batch_id, line, holder))",
        "CREATE TABLE clock (id INTEGER NOT NULL, seen FLOAT NOT NULL, PRIMARY KEY (id))",
    ),
    # To version 3: files and batches belong to keys, no longer to labels. See `Store.adopt`.
    (
        "UPDATE files SET client = 'label:' || client WHERE client <> 'anonymous'",
        "UPDATE batches SET client = 'label:' || client WHERE client <> 'anonymous'",
    ),
    # To version 4: the key of signed URLs.
    ("CREATE TABLE secrets (name VARCHAR(64) NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name))",),
)
"""The statements that lead from version 1 to 2, from 2 to 3, and so on. They never change once they are released.

A column that is added needs a default in the database, since servers of an older version may still insert rows.
"""
LATEST = 1 + len(MIGRATIONS)
"""The version that this server works with."""


class SchemaTooNew(Exception):
    """The database was written by a newer version of this server."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"its schema has version {version}, and this server knows versions up to {LATEST}. "
            "Update the server, or select another database with DATABASE_URL"
        )


def migrate(connection: Connection, metadata: MetaData) -> None:
    """Create the tables, or bring them to the latest version. Call it in a transaction.

    Args:
        connection: Connection to the database.
        metadata: The tables of the latest version.

    Raises:
        SchemaTooNew: The schema has a later version. Nothing is changed.
    """
    if connection.dialect.name == "postgresql":  # SQLite has locked the database at the start of the transaction
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    version = _version(connection)
    if version == LATEST:
        return
    if version > LATEST:
        raise SchemaTooNew(version)
    if version == 0:
        metadata.create_all(connection)
    else:
        for statements in MIGRATIONS[version - 1 :]:
            for statement in statements:
                connection.exec_driver_sql(statement)
        connection.execute(text("DROP TABLE IF EXISTS schema_version"))
    connection.execute(text("CREATE TABLE schema_version (version INTEGER NOT NULL)"))
    connection.execute(text("INSERT INTO schema_version (version) VALUES (:version)"), {"version": LATEST})


def _version(connection: Connection) -> int:
    """Return the version of the schema, 0 for an empty database. Version 1 had no table of its own for this."""
    tables = set(inspect(connection).get_table_names())
    if "schema_version" in tables:
        return int(connection.execute(text("SELECT version FROM schema_version")).scalar_one())
    return 1 if "batches" in tables else 0
