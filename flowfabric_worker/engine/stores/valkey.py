"""One Valkey or Redis server: functions are Lua functions, topics are channels.

The driver never retries, and each connection serves one call at a time. The engine decides what to do about a call
whose reply is lost; it may send any call again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import hiredis
import redis

from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.partitions import partition_key
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply, Store, StoreInfo, Subscription
from flowfabric_worker.engine.stores.call_windows import windows
from flowfabric_worker.engine.stores.driver_errors import is_missing_function, translate
from flowfabric_worker.engine.stores.library import is_ours, library
from flowfabric_worker.engine.stores.parallel_calls import all_of, side_by_side
from flowfabric_worker.engine.stores.replicas import REPLICA_COMMANDS, Replicas, reading_functions
from flowfabric_worker.engine.stores.server_info import read_info
from flowfabric_worker.engine.stores.subscription import ValkeySubscription
from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool

T = TypeVar("T")
Command: TypeAlias = tuple[Argument, ...]
Steps: TypeAlias = Generator[None, None, T]

# The commands that this store uses in addition to calling functions.
_OWN_COMMANDS = ("PING", "PUBLISH", "SUBSCRIBE")


class ValkeyStore(Store):
    """A store on one server.

    Args:
        pool: creates the connections and knows the address.
        label: the kind of store.
        prefix: the beginning of every key and channel, so that several systems can share a server.
        address: the server in words, without secrets, for messages.
        replicas: how many replicas must have what a call wrote before the call returns.
    """

    def __init__(
        self, pool: ValkeyPool, *, label: str = "valkey", prefix: str = "ff", address: str = "", replicas: int = 0
    ) -> None:
        self.label = label
        self.prefix = prefix
        self.address = address or label
        self._pool = pool
        self._user = pool.connection_kwargs.get("username") or "default"
        self._replicas = Replicas(replicas) if replicas else None
        self._functions: dict[str, str] = {}

    # Which server holds what; a cluster overrides these.

    def pool_of(self, partition: int) -> ValkeyPool:  # noqa: ARG002  a cluster asks
        """Return the connections to the server that holds a partition."""
        return self._pool

    def primaries(self) -> list[ValkeyPool]:
        """Return the connections to every server that holds partitions."""
        return [self._pool]

    # What a store does

    def install(self) -> bool:
        return any(self._everywhere(self._load_into))

    def check_rights(self) -> None:
        refused = {name for names in self._everywhere(self._refused_by) for name in names}
        if refused:
            grants = " ".join(f"+{name.lower().replace(' ', '|')}" for name in sorted(refused))
            raise TransportError(
                "permission_denied",
                f"The user of {self.address} lacks rights: {', '.join(sorted(refused))}. Grant them: ACL SETUSER "
                f"{self._user} ~{self.prefix}:* &{self.prefix}:* {grants}",
                backend=self.label,
            )

    def _refused_by(self, pool: ValkeyPool) -> list[str]:
        """Return the commands that a server refuses to this user on the keys and channels of this store."""
        own = [*_OWN_COMMANDS, *(REPLICA_COMMANDS if self._replicas else ())]
        name = library().function("check_rights")
        sample = (self._key(0), self.channel("any"))
        with self.translated():
            reply = self._send_command(pool, ("FCALL", name, 0, *sample, *library().commands, *own), CALL_TIMEOUT)
        return [command.decode() for command in reply]

    def other_releases(self) -> tuple[str, ...]:
        names = {name for found in self._everywhere(self._libraries_in) for name in found}
        return tuple(sorted(name for name in names if is_ours(name) and name != library().name))

    def _libraries_in(self, pool: ValkeyPool) -> list[str]:
        entries = self.execute(pool, "FUNCTION", "LIST", "LIBRARYNAME", "ff*")
        return [entry[entry.index(b"library_name") + 1].decode("utf-8", "replace") for entry in entries]

    def remove_release(self, name: str) -> None:
        self._everywhere(lambda pool: self._remove_from(pool, name))

    def _remove_from(self, pool: ValkeyPool, name: str) -> None:
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
            ((answer,),) = _in_turns([self._call_server(pool, [Call(function, partition, arguments)], timeout)])
            if isinstance(answer, EngineError):
                raise answer
            return answer
        try:
            return self._send_command(pool, self.command(function, partition, arguments), timeout)
        except (redis.RedisError, OSError) as error:
            raise self.translate(error) from error

    def _send_command(self, pool: ValkeyPool, command: Command, timeout: float) -> Reply:
        try:
            (reply,) = self._exchange(pool, [command], timeout)
        except redis.ResponseError as error:
            if not is_missing_function(error):
                raise
            self._load_into(pool)
            (reply,) = self._exchange(pool, [command], timeout)
        return cast(Reply, reply)

    def begin(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Callable[[], Reply]:
        pool = self.pool_of(partition)
        if not pool.has_spare():
            return super().begin(function, partition, arguments, timeout)
        steps = self._call_window(pool, [Call(function, partition, arguments)], timeout)
        next(steps)

        def reply() -> Reply:
            ((answer,),) = _in_turns([steps])
            if isinstance(answer, EngineError):
                raise answer
            return answer

        return reply

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        return self.begin_many(calls, timeout)()

    def begin_many(
        self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT
    ) -> Callable[[], list[Reply | EngineError]]:
        replies: list[Reply | EngineError] = [TransportError(backend=self.label)] * len(calls)
        groups: dict[ValkeyPool, list[int]] = {}
        for index, call in enumerate(calls):
            try:
                groups.setdefault(self.pool_of(call.partition), []).append(index)
            except EngineError as error:
                replies[index] = error
        # Call servers without an open connection in threads: they may be down, and would delay the others.
        away = [place for place, pool in enumerate(groups) if len(groups) > 1 and not pool.is_ready()]
        steps = [self._call_server(pool, [calls[i] for i in places], timeout) for pool, places in groups.items()]
        for place, pool in enumerate(groups):
            if place not in away and pool.has_spare():
                steps[place] = _begun(steps[place])

        def finish() -> list[Reply | EngineError]:
            for places, answers in zip(groups.values(), self._finish_groups(steps, away), strict=True):
                for place, reply in zip(places, answers, strict=True):
                    replies[place] = reply
            return replies

        return finish

    @staticmethod
    def _finish_groups(
        steps: Sequence[Steps[list[Reply | EngineError]]], away: Sequence[int]
    ) -> list[list[Reply | EngineError]]:
        """Make the calls of each group on its server, all in parallel; return the replies of each group."""
        ready = [place for place in range(len(steps)) if place not in away]
        shares = [share for share in [ready, *([place] for place in away)] if share]
        together = side_by_side([partial(_in_turns, [steps[place] for place in share]) for share in shares])
        answers = {
            place: answer
            for share, told in zip(shares, all_of(together), strict=True)
            for place, answer in zip(share, told, strict=True)
        }
        return [answers[place] for place in range(len(steps))]

    def subscribe(self, topic: str) -> Subscription:
        with self.translated():
            return ValkeySubscription(self.primaries()[0], self.channel(topic), self.translated)

    def wake(self, topic: str, message: bytes) -> None:
        # Call one node, which on a cluster passes the message on to all others.
        self.execute(self.primaries()[0], "PUBLISH", self.channel(topic), message)

    def ping(self) -> None:
        self._everywhere(lambda pool: self.execute(pool, "PING"))

    def info(self) -> StoreInfo:
        return read_info(self.address, self._everywhere(lambda pool: self.execute(pool, "INFO", "everything")))

    def close(self) -> None:
        for pool in self.primaries():
            pool.disconnect()

    # Shared with the cluster and the checks

    def channel(self, topic: str) -> str:
        return f"{self.prefix}:topic:{topic}"

    def command(self, function: str, partition: int, arguments: Sequence[Argument]) -> Command:
        name = self._functions.get(function)
        if name is None:
            name = self._functions[function] = library().function(function)
        return ("FCALL", name, 1, self._key(partition), *arguments)

    def _key(self, partition: int) -> str:
        return f"{self.prefix}:{partition_key(partition)}"

    def execute(self, pool: ValkeyPool, *command: Argument) -> Any:
        """Run one plain command on one server."""
        with self.translated():
            return self._exchange(pool, [command], CALL_TIMEOUT)[0]

    def _everywhere(self, ask: Callable[[ValkeyPool], T]) -> list[T]:
        """Ask every server in parallel; raise the first error if there is one."""
        return all_of(side_by_side([partial(ask, pool) for pool in self.primaries()]))

    # The following generators yield while replies are outstanding, so that several servers can work in parallel for one
    # thread. A generator that is dropped there drops its connection too.

    def _call_server(self, pool: ValkeyPool, calls: Sequence[Call], timeout: float) -> Steps[list[Reply | EngineError]]:
        """Make calls on one server, window by window, and return their replies and errors."""
        answers: list[Reply | EngineError] = []
        for window in windows(calls):
            try:
                answers += yield from self._call_window(pool, window, timeout)
            except TransportError as error:
                # Do not try the remaining calls, because the server is not available.
                return [*answers, *[error] * (len(calls) - len(answers))]
            except EngineError as error:
                answers += [error] * len(window)
        return answers

    def _call_window(self, pool: ValkeyPool, calls: Sequence[Call], timeout: float) -> Steps[list[Reply | EngineError]]:
        """Make calls in one round trip; if functions are missing, load them and send those calls once more."""
        with self.translated():
            answers = yield from self._send_calls(pool, calls, timeout)
            missing = [i for i, answer in enumerate(answers) if is_missing_function(answer)]
            if missing:
                self._load_into(pool)
                again = yield from self._send_calls(pool, [calls[i] for i in missing], timeout)
                for i, answer in zip(missing, again, strict=True):
                    answers[i] = answer
        return [self.translate(a) if isinstance(a, redis.RedisError) else a for a in answers]

    def _send_calls(self, pool: ValkeyPool, calls: Sequence[Call], timeout: float) -> Steps[list[Any]]:
        """Send calls to one server, and wait for its replicas if the URL asks for it."""
        commands = [self.command(call.function, call.partition, call.arguments) for call in calls]
        replicas = self._replicas
        if all(call.function in reading_functions() for call in calls):
            replicas = None
        behind = replicas.commands(self._key(calls[0].partition), timeout) if replicas else []
        connection = _sent(pool, [*commands, *behind])
        deadline = time.monotonic() + timeout
        yield
        answers = _received(pool, connection, len(commands) + len(behind), timeout, deadline)
        if replicas:
            replicas.check(answers[len(commands) :])
        return answers[: len(commands)]

    def _exchange(
        self, pool: ValkeyPool, commands: Sequence[Command], timeout: float, keep_errors: bool = False
    ) -> list[Any]:
        """Send commands over one connection, and read their replies, each within `timeout` seconds."""
        replies = _received(pool, _sent(pool, commands), len(commands), timeout)
        if not keep_errors:
            for reply in replies:
                if isinstance(reply, redis.ResponseError):
                    raise reply
        return replies

    def _load_into(self, pool: ValkeyPool) -> bool:
        """Add the library to one server; return False if the server has it already."""
        with self.translated():
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

    def _has_library(self, pool: ValkeyPool) -> bool:
        """Return True if a server has the library; works also for a user that may only call functions."""
        command = ("FCALL_RO", library().function("server_time"), 0)
        (answer,) = self._exchange(pool, [command], CALL_TIMEOUT, keep_errors=True)
        return not is_missing_function(answer)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate errors of the driver inside the block into errors of the engine."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise self.translate(error) from error

    def translate(self, error: Exception) -> EngineError:
        """Return the engine's error for an error of the driver."""
        return translate(error, self.address, self.label)


def _sent(pool: ValkeyPool, commands: Sequence[Command]) -> Any:
    """Send commands, and return the connection on which their replies are outstanding."""
    packed = _packed(commands)
    connection = pool.get_connection()
    try:
        connection.send_packed_command([packed], check_health=False)
    except BaseException:
        pool.discard(connection)
        raise
    return connection


def _received(
    pool: ValkeyPool, connection: Any, count: int, timeout: float, deadline: float | None = None
) -> list[Any]:
    """Read replies, each within `timeout` seconds and the first before `deadline`, and release the connection."""
    replies: list[Any] = []
    is_replica = False
    try:
        for _ in range(count):
            wait = timeout if deadline is None else max(0.0, deadline - time.monotonic())
            # Poll the socket only for another timeout than its own, which the connection applies by itself.
            if wait != connection.socket_timeout and not connection.can_read(wait):
                raise redis.TimeoutError(f"no answer within {timeout} s")
            deadline = None
            try:
                replies.append(connection.read_response())
            except redis.ReadOnlyError as error:
                replies.append(error)
                is_replica = True
            except redis.ResponseError as error:
                replies.append(error)
    except BaseException:
        # Replies may be outstanding, which the next call would take for its own.
        pool.discard(connection)
        raise
    if is_replica:
        # Only a new connection finds the server to which the name leads now.
        pool.discard(connection)
        pool.disconnect(inuse_connections=False)
    else:
        pool.release(connection)
    return replies


def _begun(steps: Steps[T]) -> Steps[T]:
    """Run a generator to its first yield, and return what is left of it."""
    try:
        next(steps)
    except StopIteration as end:
        return _ended(end.value)
    return steps


def _ended(value: T) -> Steps[T]:
    """Return a generator that returns a value at once."""
    yield from ()
    return value


def _in_turns(steps: Sequence[Steps[T]]) -> list[T]:
    """Run generators to their ends, one step of each in turn, and return their results."""
    returned: dict[int, T] = {}
    while len(returned) < len(steps):
        for place, each in enumerate(steps):
            if place not in returned:
                try:
                    next(each)
                except StopIteration as end:
                    returned[place] = end.value
    return [returned[place] for place in range(len(steps))]


def _packed(commands: Sequence[Command]) -> bytes:
    """Encode commands as bytes to send in one piece."""
    try:
        # The type stub of hiredis allows only commands of one part.
        return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]
    except TypeError as error:
        raise redis.DataError(str(error)) from error
