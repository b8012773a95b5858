"""One connection to a Postgres server, as the pool and the store use it.

Queries are sent and their results read in two steps with a time limit each, so a thread can do other work meanwhile and
is never stuck on a server that does not answer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Final, cast

import hiredis
import psycopg
from psycopg import pq

from flowfabric_worker.engine.stores.base import Argument, Reply

_BYTEA: Final = 17
_BYTEA_ARRAY: Final = 1001
_INT4: Final = 23
_BINARY: Final = pq.Format.BINARY
_LENGTH: Final = struct.Struct("!i")
_HEAD: Final = struct.Struct("!iiIii")
# How long the server itself works on a call, or waits for a lock, whose caller may be gone.
_LIMITS: Final = "-c statement_timeout=10s -c lock_timeout=4s -c idle_in_transaction_session_timeout=60s"
_DONE: Final = (
    pq.ExecStatus.COMMAND_OK,
    pq.ExecStatus.TUPLES_OK,
    pq.ExecStatus.SINGLE_TUPLE,
    pq.ExecStatus.EMPTY_QUERY,
)


class QueryTimeoutError(Exception):
    """The server did not answer in time."""


class ServerError(Exception):
    """An error with which the server answered.

    Attributes:
        code: the SQLSTATE.
        in_function: whether a stored function failed, and not the call itself.
    """

    def __init__(self, code: str, text: str, *, in_function: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.in_function = in_function


class PostgresConnection:
    """A connection that is opened by `connect`; the pool creates and keeps it.

    Args:
        conninfo: where to connect, as libpq reads it.
        timeout: how long to wait for the connection, in seconds.
    """

    # The pool adds settings of its own.
    def __init__(self, *, conninfo: str, timeout: float, **_: object) -> None:
        self._conninfo = conninfo
        self._timeout = timeout
        self._connection: psycopg.Connection[Any] | None = None
        self._sock_copy: socket.socket | None = None

    # What the pool needs

    def connect(self) -> None:
        """Open the connection if it is not open."""
        if self._connection is None:
            self._connection = self._opened()
            self._connection.pgconn.nonblocking = 1

    def _opened(self) -> psycopg.Connection[Any]:
        timeout = max(1, round(self._timeout))
        try:
            return psycopg.connect(self._conninfo, autocommit=True, connect_timeout=timeout, options=_LIMITS)
        except psycopg.OperationalError as error:
            if "unsupported startup parameter" not in str(error):
                raise
        # A pooler gives its connections to others as well, so the limits of the server must do.
        return psycopg.connect(self._conninfo, autocommit=True, connect_timeout=timeout)

    def is_pooled(self) -> bool:
        """Return True if a pooler is between this process and the server, which may change the session at any time."""
        (row,) = self.execute("SELECT pg_catalog.pg_backend_pid()", timeout=self._timeout)
        return int(row[0]) != self.pgconn.backend_pid

    def disconnect(self) -> None:
        """Close the connection. It may be called again."""
        connection, self._connection = self._connection, None
        copy, self._sock_copy = self._sock_copy, None
        if copy is not None:
            copy.close()
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def can_read(self, timeout: float) -> bool:
        """Return True if the server has sent something, or has hung up."""
        return self._connection is None or bool(_wait(self.pgconn.socket, select.POLLIN, timeout))

    @property
    def _sock(self) -> socket.socket | None:
        """Return a second handle of the socket, by which the pool can hang up."""
        if self._sock_copy is None and self._connection is not None:
            with contextlib.suppress(OSError, psycopg.Error):
                self._sock_copy = socket.fromfd(self.pgconn.socket, socket.AF_UNSPEC, socket.SOCK_STREAM)
        return self._sock_copy

    # Queries

    @property
    def pgconn(self) -> pq.abc.PGconn:
        """Return the open connection of libpq.

        Raises:
            psycopg.OperationalError: it is closed.
        """
        if self._connection is None:
            raise psycopg.OperationalError("the connection is closed")
        return self._connection.pgconn

    def send(self, query: bytes, partition: int, arguments: Sequence[Argument]) -> None:
        """Send one call of a stored function."""
        self.pgconn.send_query_params(
            query,
            [_LENGTH.pack(partition), encoded(arguments)],
            param_types=[_INT4, _BYTEA_ARRAY],
            param_formats=[_BINARY, _BINARY],
            result_format=_BINARY,
        )

    def flush(self, deadline: float) -> None:
        """Send what is buffered; read meanwhile, so that the server is never blocked."""
        while self.pgconn.flush():
            events = _wait(self.pgconn.socket, select.POLLIN | select.POLLOUT, _left(deadline))
            if not events:
                raise QueryTimeoutError
            if events & select.POLLIN:
                self.pgconn.consume_input()

    def result(self, deadline: float) -> pq.abc.PGresult | None:
        """Return the next result, or None behind the last one of a query."""
        while self.pgconn.is_busy():
            if not _wait(self.pgconn.socket, select.POLLIN, _left(deadline)):
                raise QueryTimeoutError
            self.pgconn.consume_input()
        return self.pgconn.get_result()

    def value(self, deadline: float) -> bytes:
        """Return the one value of a query's result, and read to its end.

        Raises:
            ServerError: the server answered with an error.
        """
        value, problem = b"", None
        while (result := self.result(deadline)) is not None:
            if result.status in _DONE:
                value = (result.get_value(0, 0) or b"") if result.ntuples else b""
            else:
                problem = problem_of(result)
        if problem is not None:
            raise problem
        return value

    def execute(self, query: str, *values: str, timeout: float) -> list[list[str]]:
        """Run plain SQL, or a statement with text values; return the rows of its last result as text."""
        deadline = time.monotonic() + timeout
        if values:
            self.pgconn.send_query_params(query.encode(), [value.encode() for value in values])
        else:
            self.pgconn.send_query(query.encode())
        self.flush(deadline)
        rows: list[list[str]] = []
        problem = None
        while (result := self.result(deadline)) is not None:
            if result.status in _DONE:
                rows = [
                    [(result.get_value(row, column) or b"").decode() for column in range(result.nfields)]
                    for row in range(result.ntuples)
                ]
            else:
                problem = problem or problem_of(result)
        if problem is not None:
            raise problem
        return rows


def problem_of(result: pq.abc.PGresult) -> ServerError | psycopg.OperationalError:
    """Return the error that a result tells: the server's, or the driver's if the connection is lost."""
    code = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    text = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    context = result.error_field(pq.DiagnosticField.CONTEXT) or b""
    where = context.decode("utf-8", "replace").partition("\n")[0]
    told = " ".join(filter(None, (text.decode("utf-8", "replace").strip(), where)))
    if not code:
        return psycopg.OperationalError(told)
    return ServerError(code.decode(), told, in_function=bool(where))


def encoded(arguments: Sequence[Argument]) -> bytes:
    """Return arguments as an array of bytea in the binary format of the protocol."""
    if not arguments:
        return struct.pack("!iiI", 0, 0, _BYTEA)
    out = bytearray(_HEAD.pack(1, 0, _BYTEA, len(arguments), 1))
    for argument in arguments:
        if isinstance(argument, str):
            argument = argument.encode()
        elif isinstance(argument, int):
            argument = b"%d" % argument
        out += _LENGTH.pack(len(argument))
        out += argument
    return bytes(out)


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _wait(handle: int, events: int, timeout: float) -> int:
    """Wait for events on a socket; return those that happened, 0 if none did in time."""
    poll = select.poll()
    poll.register(handle, events)
    happened = poll.poll(timeout * 1000)
    return happened[0][1] if happened else 0


def decoded(value: bytes) -> Reply:
    """Return a reply as the areas read it, from the encoding that the functions use."""
    reader = hiredis.Reader()
    reader.feed(value)
    return cast(Reply, reader.gets())
