"""Calls of stored functions in a transaction that the caller began, and commits or rolls back.

Nothing is retried in such a transaction, because its first error makes it fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.stores.base import Argument, Reply, TransactionCall
from flowfabric_worker.engine.stores.postgres_connection import ServerError

# Which database it is: its oid, and when its server started. No user can hide these, and a clone has others.
IDENTITY = (
    "SELECT pg_catalog.concat((SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()), "
    "' ', EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()))"
)
_TERMS = (
    f"SELECT ({IDENTITY}), pg_catalog.current_setting('transaction_isolation'), "
    "pg_catalog.current_setting('transaction_read_only'), (SELECT pg_catalog.has_schema_privilege(oid, 'USAGE') "
    "FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) %s), current_user"
)


def joined(
    connection: object,
    functions: str,
    identity: Callable[[], str],
    install: Callable[[], object],
    decode: Callable[[bytes], Reply],
    translate: Callable[[Exception], EngineError],
) -> TransactionCall:
    """Check a caller's connection, and return a function that calls stored functions in its transaction.

    Args:
        connection: the caller's.
        functions: the schema of the functions.
        identity: tells which database the store is in, in the words of `IDENTITY`.
        install: installs the functions in the store's database if they are missing.
        decode: reads a reply.
        translate: turns an error of the driver into an error of the engine.

    Raises:
        ValidationError: `invalid_input`, the connection cannot be used; nothing was written.
    """
    usable = _usable(connection)

    def run(query: str, *values: object) -> Any:
        try:
            # Cursors of the connection's own class may bind values or return rows in other ways.
            with psycopg.Cursor(usable, row_factory=tuple_row) as cursor:
                return cursor.execute(query.encode(), values, prepare=False, binary=True).fetchone()
        except psycopg.Error as error:
            # The text of the driver's error holds the place in every stored function.
            text = error.diag.message_primary
            raise translate(ServerError(error.sqlstate, text) if error.sqlstate and text else error) from error

    row = run(_TERMS, functions)
    _check(row, identity())
    if row[3] is None:
        install()
        row = run(_TERMS, functions)
    if not row[3]:
        raise _refused(
            f'The connection\'s user may not call the functions: GRANT USAGE ON SCHEMA "{functions}" TO "{row[4]}"'
        )

    def call(function: str, partition: int, arguments: Sequence[Argument]) -> Reply:
        packed = [each if isinstance(each, bytes) else str(each).encode() for each in arguments]
        query = f'SELECT "{functions}"."{function}"(%s::int, %b::bytea[])'
        return decode(bytes(run(query, partition, packed)[0]))

    return call


def _usable(connection: object) -> psycopg.Connection[Any]:
    if not isinstance(connection, psycopg.Connection):
        raise _refused(
            f"connection= takes a psycopg.Connection, not {type(connection).__name__}: with SQLAlchemy it is "
            "session.connection().connection.driver_connection, with Django django.db.connection.connection."
        )
    if connection.closed:
        raise _refused("The connection that was passed is closed: pass an open one.")
    if connection.info.transaction_status == pq.TransactionStatus.INERROR:
        raise _refused("The transaction of the connection has failed: roll it back, and submit in a new one.")
    return connection


def _check(row: tuple[str, str, str, bool | None, str], identity: str) -> None:
    """Refuse a transaction in which executions cannot be created, from the row that `_TERMS` gives."""
    database, isolation, read_only, *_ = row
    if database != identity:
        raise _refused("The connection leads to another database than the store: connect to the store's database.")
    if isolation not in ("read committed", "read uncommitted"):
        raise _refused(f"The transaction is {isolation}: submit in one that is READ COMMITTED.")
    if read_only == "on":
        raise _refused("The transaction is read-only: submit in one that may write.")


def _refused(text: str) -> ValidationError:
    return ValidationError("invalid_input", text)
