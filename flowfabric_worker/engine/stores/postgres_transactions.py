"""Calls of stored functions in a transaction of the application, or in that of a handler.

The application commits its transaction or rolls it back. A handler's transaction is committed with its execution's
completion. Nothing is retried in such transactions, because the first error makes them fail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.stores.base import Argument, Reply, StoreTransaction, TransactionCall
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
    run = _runner(usable, translate)
    row = run(_TERMS, functions)
    _check(row, identity())
    if row[3] is None:
        install()
        row = run(_TERMS, functions)
    if not row[3]:
        raise _refused(
            f'The connection\'s user may not call the functions: GRANT USAGE ON SCHEMA "{functions}" TO "{row[4]}"'
        )
    return _caller(run, functions, decode)


def _runner(connection: psycopg.Connection[Any], translate: Callable[[Exception], EngineError]) -> Callable[..., Any]:
    """Return a function that runs a query with values, and returns its row."""

    def run(query: str, *values: object) -> Any:
        try:
            # Cursors of the connection's own class may bind values or return rows in other ways.
            with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
                return cursor.execute(query.encode(), values, prepare=False, binary=True).fetchone()
        except psycopg.Error as error:
            # The text of the driver's error holds the place in every stored function.
            text = error.diag.message_primary
            raise translate(ServerError(error.sqlstate, text) if error.sqlstate and text else error) from error

    return run


def _caller(run: Callable[..., Any], functions: str, decode: Callable[[bytes], Reply]) -> TransactionCall:
    """Return a function that calls the stored functions of a schema by `run`."""

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


# A client that stops between the completion and the commit must not hold its locks for longer.
_COMMIT_WITHIN_MS = 10_000


class HandlerConnection(psycopg.Connection[Any]):
    """A connection whose transaction ends with the attempt of the handler that uses it.

    Until then `commit` keeps what was done so far for the commit at the end, `rollback` undoes what was done since the
    last `commit`, and `close` does nothing, so that frameworks which call these methods work with the connection.

    Attributes:
        is_open: True while the handler may use the connection.
    """

    is_open = False

    def open(self) -> None:
        """Begin the transaction."""
        self.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        self._run("SAVEPOINT flowfabric")
        self.is_open = True

    def seal(self) -> None:
        """Take the transaction back from the handler, to end it.

        Raises:
            ValidationError: `invalid_input`, the handler has ended the transaction, or left a failed one.
        """
        self.is_open = False
        try:
            self._run(
                f"RELEASE SAVEPOINT flowfabric; SET LOCAL lock_timeout = '4s'; SET LOCAL statement_timeout = '10s'; "
                f"SET LOCAL idle_in_transaction_session_timeout = {_COMMIT_WITHIN_MS}"
            )
        except (psycopg.errors.InvalidSavepointSpecification, psycopg.errors.NoActiveSqlTransaction):
            raise _refused(
                "The handler ended its transaction by a statement: leave COMMIT and ROLLBACK out, because the "
                "transaction is committed when the handler returns."
            ) from None
        except psycopg.errors.InFailedSqlTransaction:
            raise _refused(
                "A statement failed in the transaction of the handler, which caught the error: raise it, or put the "
                "statement into 'with connection.transaction():'."
            ) from None

    def commit(self) -> None:
        if self.is_open:
            self._run("RELEASE SAVEPOINT flowfabric; SAVEPOINT flowfabric")
        else:
            super().commit()

    def rollback(self) -> None:
        if self.is_open:
            self._run("ROLLBACK TO SAVEPOINT flowfabric")
        else:
            super().rollback()

    def close(self) -> None:
        if not self.is_open:
            super().close()

    def _run(self, statements: str) -> None:
        with psycopg.Cursor(self) as cursor:
            cursor.execute(statements.encode())


class HandlerTransaction(StoreTransaction):
    """The transaction of a handler.

    Args:
        connection: new, and used by nothing else.
        functions: the schema of the functions.
        decode: reads a reply.
        translate: turns an error of the driver into an error of the engine.
    """

    connection: HandlerConnection

    def __init__(
        self,
        connection: HandlerConnection,
        functions: str,
        decode: Callable[[bytes], Reply],
        translate: Callable[[Exception], EngineError],
    ) -> None:
        self.connection = connection
        self._translate = translate
        self._call = _caller(_runner(connection, translate), functions, decode)
        try:
            connection.open()
        except psycopg.Error as error:
            self.roll_back()
            raise translate(error) from error

    def call(self, function: str, partition: int, arguments: Sequence[Argument]) -> Reply:
        try:
            self.connection.seal()
        except psycopg.Error as error:
            raise self._translate(error) from error
        return self._call(function, partition, arguments)

    def commit(self) -> None:
        try:
            self.connection.commit()
        except psycopg.Error as error:
            if self.connection.closed:
                raise self._translate(error) from error
            raise
        finally:
            self.roll_back()

    def roll_back(self) -> bool:
        self.connection.is_open = False
        was_open = not self.connection.closed
        with contextlib.suppress(psycopg.Error):
            if was_open:
                self.connection.rollback()
        self.connection.close()
        return was_open
