"""One Postgres database: functions are SQL functions, topics are channels of NOTIFY.

The driver retries only calls that lost against another one (a deadlock) and changed nothing. The engine decides what to
do about a call whose reply is lost; it may send any call again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import attrs
import psycopg
import tenacity
from psycopg import pq

from flowfabric_worker.engine import forks as forking
from flowfabric_worker.engine.errors import EngineError, TransportError, UnavailableError
from flowfabric_worker.engine.stores.base import (
    CALL_TIMEOUT,
    Argument,
    Call,
    Reply,
    Store,
    StoreInfo,
    StoreTransaction,
    Subscription,
    TransactionCall,
)
from flowfabric_worker.engine.stores.call_windows import windows
from flowfabric_worker.engine.stores.pool import Pool
from flowfabric_worker.engine.stores.postgres_connection import (
    PostgresConnection,
    QueryTimeoutError,
    ServerError,
    decoded,
    problem_of,
)
from flowfabric_worker.engine.stores.postgres_errors import (
    ends_connection,
    is_conflict,
    is_damage,
    is_made_again,
    is_missing_function,
    translate,
)
from flowfabric_worker.engine.stores.postgres_install import (
    check_rights,
    install,
    other_releases,
    read_info,
    remove_schema,
)
from flowfabric_worker.engine.stores.postgres_topics import DeafError, DeafSubscription, Topics
from flowfabric_worker.engine.stores.postgres_transactions import (
    IDENTITY,
    HandlerConnection,
    HandlerTransaction,
    joined,
)
from flowfabric_worker.engine.stores.sql_library import sql_library

_DRIVER_ERRORS = (psycopg.Error, QueryTimeoutError, ServerError, OSError, TypeError)
# How often a call is made that loses against others.
_MOST_TRIES = 8
# A process that heard nothing tries to hear again after so many seconds, because a pooler may have got another mode.
_DEAF_FOR = 60.0
_DEAF = (
    "{address} is behind a pooler in transaction mode, so it cannot tell this process of new work: it looks once a "
    "second. Name the server itself, or let the pooler pool sessions."
)


def shared_size(pool_size: int) -> int:
    """Return how many connections all threads share, if a process has at most `pool_size`.

    One more renews leases, so that no call delays it, and one listens.
    """
    return max(1, pool_size - 2)


class PostgresStore(Store):
    """A store in one schema of a database.

    Args:
        pool: creates the connections.
        schema: the schema that holds the tables; the functions of each release have one of their own beside it.
        address: the server in words, without secrets, for messages.

    Attributes:
        library: the functions and the migrations.
        subscribing: held while the listening connection is opened, so that the threads of a process share one.
    """

    def __init__(self, pool: Pool, *, schema: str = "ff", address: str = "") -> None:
        self.label = "postgresql"
        self.spans_partitions = True
        self.schema = schema
        self.library = sql_library()
        self.address = address or self.label
        self._pool = pool
        self._queries: dict[str, bytes] = {}
        self.reset_after_fork()
        forking.remember(self)

    def reset_after_fork(self) -> None:
        """Forget the listening connection in a forked process, which is the parent's."""
        self.subscribing = threading.Lock()
        # How often the store was closed, so that a connection which is opened meanwhile is closed as well.
        self._closing, self._closes = threading.Lock(), 0
        self._topics: Topics | None = None
        self._deaf_until = -math.inf

    # What a store does

    def install(self) -> bool:
        with self.connection() as connection:
            return install(connection, self.library, self.schema, self.address)

    def check_rights(self) -> None:
        with self.connection() as connection:
            check_rights(connection, self.library, self.schema, self.address)

    def may_create_stores(self) -> bool:
        query = "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')"
        with self.connection() as connection:
            return connection.execute(query, timeout=CALL_TIMEOUT) == [["t"]]

    def other_releases(self) -> tuple[str, ...]:
        with self.connection() as connection:
            return other_releases(connection, self.library, self.schema)

    def discard(self) -> None:
        with self.connection() as connection:
            for schema in (self.library.schema_of(self.schema), self.schema):
                remove_schema(connection, schema)

    def remove_release(self, name: str) -> None:
        with self.connection() as connection:
            remove_schema(connection, name)

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        def attempt() -> Reply:
            return self._carried_out(function, partition, arguments, timeout)

        return self._retried(lambda: self._installed(attempt))

    def begin(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Callable[[], Reply]:
        if not self._pool.has_spare():
            return super().begin(function, partition, arguments, timeout)
        deadline = time.monotonic() + timeout
        with self._translated():
            connection = self._send(function, partition, arguments, deadline)

        def reply() -> Reply:
            try:
                return self._receive(connection, deadline)
            except ServerError as error:
                if not is_made_again(error):
                    raise self.translate(error) from error
            except _DRIVER_ERRORS as error:
                raise self.translate(error) from error
            return self.call(function, partition, arguments, timeout)

        return reply

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        replies: list[Reply | EngineError] = []
        for window in windows(calls):
            try:
                replies += self._call_window(window, timeout)
            except TransportError as error:
                # The server is down or disturbed, so the calls that were not sent yet are not tried.
                return [*replies, *[error] * (len(calls) - len(replies))]
            except EngineError as error:
                replies += [error] * len(window)
        return replies

    def join(self, connection: object) -> TransactionCall:
        functions = self.library.schema_of(self.schema)
        return joined(connection, functions, self._identity, self.install, decoded, self.translate)

    def begin_transaction(self) -> StoreTransaction:
        conninfo, timeout = (self._pool.connection_kwargs[name] for name in ("conninfo", "timeout"))
        with self._translated():
            # A pooler in transaction mode gives the session to others later, with what was prepared in it.
            connection = HandlerConnection.connect(
                conninfo, connect_timeout=max(1, round(timeout)), prepare_threshold=None
            )
        return HandlerTransaction(connection, self.library.schema_of(self.schema), decoded, self.translate)

    def subscribe(self, topic: str) -> Subscription:
        try:
            topics = self._listening()
        except DeafError:
            return DeafSubscription(self.address)
        return topics.subscribe(topic)

    def wake(self, topic: str, message: bytes) -> None:
        with self.connection() as connection:
            connection.execute(
                "SELECT pg_catalog.pg_notify($1, $2)", self.channel(topic), message.decode(), timeout=CALL_TIMEOUT
            )

    def ping(self) -> None:
        with self.connection() as connection:
            connection.execute("SELECT 1", timeout=CALL_TIMEOUT)

    def info(self) -> StoreInfo:
        with self.connection() as connection:
            info, is_pooled = read_info(connection, self.address, self.schema), connection.is_pooled()
        try:
            if is_pooled:
                self._listening()
        except DeafError:
            return attrs.evolve(info, warnings=(*info.warnings, _DEAF.format(address=self.address)))
        return info

    def close(self) -> None:
        with self._closing:
            self._closes += 1
            topics, self._topics = self._topics, None
        if topics is not None:
            topics.close()
        self._pool.disconnect()

    # How

    def _listening(self) -> Topics:
        """Return the topics of the listening connection, which is opened if it is not open.

        Raises:
            DeafError: no message would arrive, or none did a moment ago.
            TransportError: `engine_closed`, the store was closed meanwhile.
        """
        with self.subscribing, self._translated():
            topics = self._topics
            if topics is None or not topics.is_open:
                if time.monotonic() < self._deaf_until:
                    raise DeafError
                closes = self._closes
                connection = cast(PostgresConnection, self._pool.connection_class(**self._pool.connection_kwargs))
                try:
                    topics = Topics(connection, self.channel, self.translate, self.wake)
                except DeafError:
                    self._deaf_until = time.monotonic() + _DEAF_FOR
                    raise
                with self._closing:
                    if closes == self._closes:
                        self._topics = topics
                        return topics
                topics.close()
                raise TransportError("engine_closed", backend=self.label)
            return topics

    def channel(self, topic: str) -> str:
        """Return the channel of a topic."""
        return f"{self.schema}:{topic}"

    @contextmanager
    def connection(self) -> Iterator[PostgresConnection]:
        """Provide a connection for plain SQL; it is closed if that fails in any way."""
        with self._translated():
            connection = cast(PostgresConnection, self._pool.get_connection())
            try:
                yield connection
            except BaseException:
                self._pool.discard(connection)
                raise
            self._pool.release(connection)

    def _identity(self) -> str:
        with self.connection() as connection:
            return connection.execute(IDENTITY, timeout=CALL_TIMEOUT)[0][0]

    def _query(self, function: str) -> bytes:
        query = self._queries.get(function)
        if query is None:
            if function not in self.library.operations:
                raise UnavailableError(
                    function, f"{function} is not available on Postgres yet; use a Valkey store for it."
                )
            name = f'"{self.library.schema_of(self.schema)}"."{function}"'
            query = self._queries[function] = f"SELECT {name}($1, $2)".encode()
        return query

    def _send(
        self, function: str, partition: int, arguments: Sequence[Argument], deadline: float
    ) -> PostgresConnection:
        query = self._query(function)
        connection = cast(PostgresConnection, self._pool.get_connection())
        try:
            connection.send(query, partition, arguments)
            connection.flush(deadline)
        except BaseException:
            self._pool.discard(connection)
            raise
        return connection

    def _receive(self, connection: PostgresConnection, deadline: float) -> Reply:
        try:
            value = connection.value(deadline)
        except ServerError as error:
            if ends_connection(error):
                self._give_up(connection)
            else:
                self._pool.release(connection)
            raise
        except BaseException:
            # Results may be outstanding, and the next call would read them as its own.
            self._pool.discard(connection)
            raise
        self._pool.release(connection)
        return decoded(value)

    def _give_up(self, connection: PostgresConnection) -> None:
        """Close every connection that leads to a server which is no longer the right one."""
        self._pool.discard(connection)
        self._pool.disconnect(inuse_connections=False)

    def _call_once(self, function: str, partition: int, arguments: Sequence[Argument], timeout: float) -> Reply:
        deadline = time.monotonic() + timeout
        return self._receive(self._send(function, partition, arguments, deadline), deadline)

    def _carried_out(self, function: str, partition: int, arguments: Sequence[Argument], timeout: float) -> Reply:
        """Make a call; if it meets damaged data, make it once more so that only what is damaged fails."""
        try:
            return self._call_once(function, partition, arguments, timeout)
        except ServerError as error:
            if not is_damage(error):
                raise
        return self._call_once("carefully", partition, [function, *arguments], timeout)

    def _installed(self, attempt: Callable[[], Reply]) -> Reply:
        """Make a call; if functions are missing, install them and make it once more."""
        try:
            return attempt()
        except ServerError as error:
            if not is_missing_function(error):
                raise
        self.install()
        return attempt()

    def _retried(self, attempt: Callable[[], Reply]) -> Reply:
        """Make a call, and make it again while it loses against other calls."""
        try:
            return attempt()
        except ServerError as error:
            if not is_conflict(error):
                raise self.translate(error) from error
        except _DRIVER_ERRORS as error:
            raise self.translate(error) from error
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_conflict),
            stop=tenacity.stop_after_attempt(_MOST_TRIES),
            wait=tenacity.wait_random_exponential(multiplier=0.005, max=0.2),
            reraise=True,
        )
        with self._translated():
            return again(attempt)

    def _call_window(self, calls: Sequence[Call], timeout: float) -> list[Reply | EngineError]:
        """Make calls in one round trip; those that lost or missed their function are made once more by themselves."""
        if len(calls) == 1:
            return [self._answer_of(calls[0], timeout)]
        with self._translated():
            answers = self._pipeline(calls, time.monotonic() + timeout)
        return [
            self._answer_of(call, timeout)
            if is_made_again(answer)
            else self.translate(answer)
            if isinstance(answer, Exception)
            else answer
            for call, answer in zip(calls, answers, strict=True)
        ]

    def _answer_of(self, call: Call, timeout: float) -> Reply | EngineError:
        try:
            return self.call(call.function, call.partition, call.arguments, timeout)
        except EngineError as error:
            if isinstance(error, TransportError):
                raise
            return error

    def _pipeline(self, calls: Sequence[Call], deadline: float) -> list[Any]:
        """Send calls, each with a transaction of its own, before the first result is read."""
        queries = [self._query(call.function) for call in calls]
        connection = cast(PostgresConnection, self._pool.get_connection())
        try:
            pgconn = connection.pgconn
            pgconn.enter_pipeline_mode()
            for call, query in zip(calls, queries, strict=True):
                connection.send(query, call.partition, call.arguments)
                pgconn.pipeline_sync()
            connection.flush(deadline)
            answers = [_answer(connection, deadline) for _ in calls]
            pgconn.exit_pipeline_mode()
        except BaseException:
            self._pool.discard(connection)
            raise
        if any(isinstance(answer, ServerError) and ends_connection(answer) for answer in answers):
            self._give_up(connection)
        else:
            self._pool.release(connection)
        return answers

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of the driver and the server into errors of the engine."""
        try:
            yield
        except _DRIVER_ERRORS as error:
            raise self.translate(error) from error

    def translate(self, error: Exception) -> EngineError:
        """Return the engine's error for an error of the driver or the server."""
        return translate(error, self.address)


def _answer(connection: PostgresConnection, deadline: float) -> Reply | Exception:
    """Return what the next call of a pipeline was answered.

    Raises:
        psycopg.OperationalError: the connection is lost, and with it the answers to the calls behind.
    """
    answer: Reply | Exception | None = None
    while True:
        result = connection.result(deadline)
        if result is None:
            continue
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            assert answer is not None, "a call is answered before its end"
            return answer
        if result.status == pq.ExecStatus.TUPLES_OK:
            answer = decoded(result.get_value(0, 0) or b"")
        else:
            answer = problem_of(result)
            if isinstance(answer, psycopg.OperationalError):
                raise answer
