"""One Valkey or Redis server: functions are Lua functions, topics are channels.

The driver never retries by itself and each connection serves one call at a time. What becomes of a call whose reply
is lost is for the engine to say, which may send any call again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import hiredis
import redis
from redis.connection import ConnectionPool

from flowfabric_worker.engine.errors import (
    EngineError,
    ResourceExhaustedError,
    TransportError,
    UnavailableError,
    ValidationError,
)
from flowfabric_worker.engine.partitions import partition_key
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply, Store, StoreInfo, Subscription
from flowfabric_worker.engine.stores.library import is_ours, library
from flowfabric_worker.engine.stores.pool import NoFreeConnectionError
from flowfabric_worker.engine.stores.replicas import Replicas, TooFewReplicasError, reading_functions
from flowfabric_worker.engine.stores.server_info import read_info, versions_wanted
from flowfabric_worker.engine.stores.subscription import ValkeySubscription
from flowfabric_worker.engine.stores.tls import HandshakeTimeoutError, advice, failed_handshake

Command: TypeAlias = tuple[Argument, ...]

# How a server tells that a function did what its caller may not.
_IN_SCRIPT = "ACL failure in script"
# The driver has classes for some of these answers, and cuts the word off those.
_BUSY_WORDS = ("BUSY", "UNKILLABLE", "NOREPLICAS")
_BUSY_CLASSES = (
    redis.BusyLoadingError,
    redis.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
)


class ValkeyStore(Store):
    """A store on one server.

    Args:
        pool: makes the connections and knows the address.
        label: names the kind of store.
        prefix: begins every key and channel, so that several systems share a server.
        address: the server in words, without secrets, for messages.
        replicas: how many of its replicas must have what a call wrote before the call returns.
    """

    def __init__(
        self, pool: ConnectionPool, *, label: str = "valkey", prefix: str = "ff", address: str = "", replicas: int = 0
    ) -> None:
        self.label = label
        self.prefix = prefix
        self.address = address or label
        self._pool = pool
        self._replicas = Replicas(replicas) if replicas else None
        self._loading = threading.Lock()
        self._functions: dict[str, str] = {}

    # Where things are: a cluster answers these differently.

    def pool_of(self, partition: int) -> ConnectionPool:  # noqa: ARG002  a cluster asks
        """The connections to the server that holds a partition."""
        return self._pool

    def primaries(self) -> list[ConnectionPool]:
        """The connections to every server that holds partitions."""
        return [self._pool]

    # What a store does.

    def load(self) -> bool:
        loaded = [self._load_into(pool) for pool in self.primaries()]
        return any(loaded)

    def other_libraries(self) -> tuple[str, ...]:
        names = {name for pool in self.primaries() for name in self._libraries_in(pool)}
        return tuple(sorted(name for name in names if is_ours(name) and name != library().name))

    def _libraries_in(self, pool: ConnectionPool) -> Iterator[str]:
        for entry in self.execute(pool, "FUNCTION", "LIST", "LIBRARYNAME", "ff*"):
            yield entry[entry.index(b"library_name") + 1].decode("utf-8", "replace")

    def remove_library(self, name: str) -> None:
        for pool in self.primaries():
            try:
                self.execute(pool, "FUNCTION", "DELETE", name)
            except TransportError as error:
                if "library not found" not in str(error.__cause__).lower():
                    raise

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        pool = self.pool_of(partition)
        if self._replicas:
            (answer,) = self._call_group(pool, [Call(function, partition, arguments)], timeout)
            if isinstance(answer, EngineError):
                raise answer
            return answer
        try:
            return self._call_one(pool, self.command(function, partition, arguments), timeout)
        except (redis.RedisError, OSError) as error:
            raise self.translate(error) from error

    def _call_one(self, pool: ConnectionPool, command: Command, timeout: float) -> Reply:
        try:
            (reply,) = self._exchange(pool, [command], timeout)
        except redis.ResponseError as error:
            if not _is_missing(error):
                raise
            self._load_into(pool)
            (reply,) = self._exchange(pool, [command], timeout)
        return cast(Reply, reply)

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        replies: list[Reply | EngineError] = [TransportError(backend=self.label)] * len(calls)
        groups: dict[int, tuple[ConnectionPool, list[int]]] = {}
        for index, call in enumerate(calls):
            pool = self.pool_of(call.partition)
            groups.setdefault(id(pool), (pool, []))[1].append(index)
        for pool, indices in groups.values():
            answers = self._call_group(pool, [calls[index] for index in indices], timeout)
            for index, answer in zip(indices, answers, strict=True):
                replies[index] = answer
        return replies

    def subscribe(self, topic: str) -> Subscription:
        with self.translated():
            return ValkeySubscription(self.primaries()[0], self.channel(topic), self.translated)

    def wake(self, topic: str, message: bytes) -> None:
        # Any node of a cluster passes a message on to all others.
        self.execute(self.primaries()[0], "PUBLISH", self.channel(topic), message)

    def ping(self) -> None:
        for pool in self.primaries():
            self.execute(pool, "PING")

    def info(self) -> StoreInfo:
        return read_info(self.address, [self.execute(pool, "INFO", "everything") for pool in self.primaries()])

    def close(self) -> None:
        for pool in self.primaries():
            pool.disconnect()

    # Shared with the cluster and the checks.

    def channel(self, topic: str) -> str:
        return f"{self.prefix}:topic:{topic}"

    def command(self, function: str, partition: int, arguments: Sequence[Argument]) -> Command:
        name = self._functions.get(function)
        if name is None:
            name = self._functions[function] = library().function(function)
        return ("FCALL", name, 1, self._key(partition), *arguments)

    def _key(self, partition: int) -> str:
        return f"{self.prefix}:{partition_key(partition)}"

    def execute(self, pool: ConnectionPool, *command: Argument) -> Any:
        """Runs one plain command on one server."""
        with self.translated():
            return self._exchange(pool, [command], CALL_TIMEOUT)[0]

    def _call_group(self, pool: ConnectionPool, calls: Sequence[Call], timeout: float) -> list[Reply | EngineError]:
        """Runs calls on one server; those that miss their function are sent once more after loading it."""
        try:
            with self.translated():
                answers = self._send_calls(pool, calls, timeout)
                missing = [i for i, answer in enumerate(answers) if _is_missing(answer)]
                if missing:
                    self._load_into(pool)
                    again = self._send_calls(pool, [calls[i] for i in missing], timeout)
                    for i, answer in zip(missing, again, strict=True):
                        answers[i] = answer
        except EngineError as error:
            return [error] * len(calls)
        return [self.translate(a) if isinstance(a, redis.RedisError) else a for a in answers]

    def _send_calls(self, pool: ConnectionPool, calls: Sequence[Call], timeout: float) -> list[Any]:
        """Runs calls on one server, and waits for its replicas where that is wanted."""
        commands = [self.command(call.function, call.partition, call.arguments) for call in calls]
        if self._replicas is None or all(call.function in reading_functions() for call in calls):
            return self._exchange(pool, commands, timeout, keep_errors=True)
        behind = self._replicas.commands(self._key(calls[0].partition), timeout)
        answers = self._exchange(pool, [*commands, *behind], timeout, keep_errors=True)
        self._replicas.check(answers[len(commands) :])
        return answers[: len(commands)]

    def _exchange(
        self, pool: ConnectionPool, commands: Sequence[Command], timeout: float, keep_errors: bool = False
    ) -> list[Any]:
        """Sends commands over one connection and reads their replies, each within `timeout` seconds."""
        connection = pool.get_connection()
        healthy = False
        try:
            connection.send_packed_command([_packed(commands)], check_health=False)
            replies: list[Any] = []
            for _ in commands:
                # The connection itself waits for as long as its socket may take; looking first costs a few calls more.
                if timeout != connection.socket_timeout and not connection.can_read(timeout):
                    raise redis.TimeoutError(f"no answer within {timeout} s")
                try:
                    replies.append(connection.read_response())
                except redis.ResponseError as error:
                    replies.append(error)
            healthy = True
        finally:
            if not healthy:
                # Half a conversation lies on this connection; nobody else may go on with it.
                connection.disconnect()
            pool.release(connection)
        if not keep_errors:
            for reply in replies:
                if isinstance(reply, redis.ResponseError):
                    raise reply
        return replies

    def _load_into(self, pool: ConnectionPool) -> bool:
        """Adds the library to one server; False if it was there. Libraries of other releases stay."""
        with self._loading, self.translated():
            try:
                self._exchange(pool, [("FUNCTION", "LOAD", library().source)], CALL_TIMEOUT)
            except redis.ResponseError as error:
                if "already exists" in str(error):
                    return False
                if isinstance(error, redis.exceptions.NoPermissionError):
                    if self._has_library(pool):
                        return False
                    raise TransportError(
                        "permission_denied",
                        f"The user of {self.address} may not load functions. Give it the right to FUNCTION LOAD, or "
                        "run 'flowfabric-worker check' once as a user that has it.",
                        backend=self.label,
                    ) from error
                raise
            return True

    def _has_library(self, pool: ConnectionPool) -> bool:
        """Whether a server has the library, found out by calling into it: a user may be allowed no more than that."""
        command = ("FCALL_RO", library().function("server_time"), 0)
        (answer,) = self._exchange(pool, [command], CALL_TIMEOUT, keep_errors=True)
        return not _is_missing(answer)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns the driver's errors into the engine's."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise self.translate(error) from error

    def translate(self, error: Exception) -> EngineError:
        """The engine's error for one of the driver's."""
        text = str(error)
        transport = functools.partial(TransportError, backend=self.label)
        if isinstance(error, redis.AuthenticationError) or text.startswith(("WRONGPASS", "NOAUTH")):
            return transport(
                "authentication_failed", f"{self.address} refused the user or the password: check the URL."
            )
        if isinstance(error, redis.exceptions.NoPermissionError) or text.startswith("NOPERM") or _IN_SCRIPT in text:
            return transport("permission_denied", f"The user of {self.address} lacks a right: {text}")
        if isinstance(error, redis.DataError):
            return ValidationError("invalid_input", f"An argument is of a type that cannot be sent: {text}")
        if isinstance(error, redis.ConnectionError) and (refusal := failed_handshake(error)) is not None:
            return transport("tls_failed", f"No TLS connection to {self.address}: {advice(refusal)}.")
        if isinstance(error, HandshakeTimeoutError):
            return transport(
                "store_timeout", f"{self.address} did not answer the TLS handshake in time: does it speak TLS there?"
            )
        if isinstance(error, redis.TimeoutError | TimeoutError):
            return transport("store_timeout", f"{self.address} did not answer in time.")
        if isinstance(error, NoFreeConnectionError):
            return transport("store_timeout", f"No connection to {self.address} was free: {text}; raise pool_size.")
        if isinstance(error, TooFewReplicasError):
            return transport("store_busy", f"{self.address} has too few replicas that follow: {text}.")
        if isinstance(error, redis.exceptions.OutOfMemoryError) or text.startswith("OOM"):
            return ResourceExhaustedError(
                "store_full", f"{self.address} has reached its maxmemory; free memory or raise the limit."
            )
        if text.startswith(_BUSY_WORDS) or isinstance(error, _BUSY_CLASSES):
            return transport("store_busy", f"{self.address} cannot serve calls now: {text}")
        if _is_missing(error):
            # It was loaded a moment ago, so somebody removes it as fast: the engine may try again.
            return transport("store_busy", f"{self.address} lost its functions again while they were loaded.")
        if isinstance(error, redis.ResponseError):
            if "unknown command" in text.lower():
                return UnavailableError(
                    "functions",
                    f"{self.address} has no functions: {versions_wanted()} is needed.",
                    "store_not_supported",
                )
            return transport("function_failed", f"{self.address} could not run the call: {text}")
        return transport("transport", f"{self.address} cannot be reached: {text}")


def _packed(commands: Sequence[Command]) -> bytes:
    """Commands as they are sent, all in one piece."""
    try:
        # Its stub knows commands of one part only.
        return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]
    except TypeError as error:
        raise redis.DataError(str(error)) from error


def _is_missing(answer: object) -> bool:
    return isinstance(answer, redis.ResponseError) and "function not found" in str(answer).lower()
