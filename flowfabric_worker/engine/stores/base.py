"""The interface of a store: named functions, each an atomic step in one partition, and topics to wait on.

A store does not know executions. It installs the stored functions, calls one by name in a partition, calls many at
once, waits on a topic, wakes a topic, and turns the errors of its driver into `EngineError`s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

from flowfabric_worker.engine.errors import EngineError, ValidationError

Argument: TypeAlias = bytes | str | int
Reply: TypeAlias = list[Any]
"""A nested list of bytes, ints and None, the same on every store."""

TransactionCall: TypeAlias = Callable[[str, int, Sequence[Argument]], Reply]
"""Calls a stored function in a partition with arguments, in a transaction of the caller."""

CALL_TIMEOUT = 5.0


@attrs.frozen
class Call:
    """One call of a stored function."""

    function: str
    partition: int
    arguments: Sequence[Argument]


@attrs.frozen(kw_only=True)
class StoreInfo:
    """What a store reports about itself.

    Attributes:
        servers: the number of servers that hold its partitions now.
        calls: the number of functions that its servers have run since their start; 0 if it is not known.
        busy_us: the time that those functions took, in microseconds.
    """

    product: str
    version: str
    warnings: tuple[str, ...] = ()
    servers: int = 1
    calls: int = 0
    busy_us: int = 0


class Subscription(ABC):
    """A connection that listens on one topic, for one thread at a time; another thread may call `close`."""

    @abstractmethod
    def wait(self, timeout: float) -> list[bytes]:
        """Wait at most `timeout` seconds for messages, and return them, oldest first.

        Raises:
            TransportError: the connection is lost, and with it the messages that were sent since.
        """

    @abstractmethod
    def close(self) -> None:
        """End the subscription, and a `wait` of another thread; a second call does nothing."""


class StoreTransaction(ABC):
    """A transaction of the store on a connection of its own, in which a handler writes and functions are called.

    Attributes:
        connection: the driver's connection, for the handler.
    """

    connection: Any

    @abstractmethod
    def call(self, function: str, partition: int, arguments: Sequence[Argument]) -> Reply:
        """Call a stored function in the transaction, once; the handler can do nothing in it from now on.

        Raises:
            ValidationError: `invalid_input`, the handler has ended the transaction, or left a failed one.
            TransportError: the call failed, and with it the transaction.
        """

    @abstractmethod
    def commit(self) -> None:
        """Make what was written durable, and close the connection.

        Raises:
            TransportError: the connection is lost; it is not known whether the transaction was committed.
            Exception: the driver's; the database refused to commit, and nothing was written.
        """

    @abstractmethod
    def roll_back(self) -> bool:
        """Undo what was written, and close the connection; return False if the connection was lost or closed before."""


class Store(ABC):
    """A place that holds the engine's data.

    Attributes:
        label: the kind of store, for handles, logs and metrics.
        default_partitions: how many partitions a new store of this kind gets.
        counts_listeners: whether a function can count the listeners of a topic; False if they may be on other servers.
        spans_partitions: whether a function reaches the data of all partitions.
    """

    label: str
    default_partitions: int = 1
    counts_listeners: bool = True
    spans_partitions: bool = False

    @abstractmethod
    def install(self) -> bool:
        """Install the stored functions of this release where they are missing; return True if any were missing.

        The functions of other releases are kept.

        Raises:
            UnavailableError: `store_not_supported`, the server is too old, or its settings would lose data.
            TransportError: the store cannot be reached, or refuses the password or the right to install functions.
        """

    @abstractmethod
    def check_rights(self) -> None:
        """Check that this store's user may do everything that the stored functions and this store do.

        Raises:
            TransportError: `permission_denied`; the message says what to grant.
        """

    def may_create_stores(self) -> bool:
        """Return True if this store's user may create another store beside it, under another prefix or schema.

        Raises:
            TransportError: the store cannot be reached.
        """
        return True

    @abstractmethod
    def other_releases(self) -> tuple[str, ...]:
        """Return the names of the other releases of this package whose functions are installed."""

    @abstractmethod
    def remove_release(self, name: str) -> None:
        """Remove what another release installed, on every server."""

    def discard(self) -> None:  # noqa: B027 - most stores have nothing of the kind
        """Remove what the store keeps on its server beside its partitions, such as tables, once these are erased."""

    @abstractmethod
    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        """Call one function atomically in one partition, in one round trip, and return its reply.

        If functions are missing, they are installed, and the call is repeated once. Nothing else is repeated.

        Raises:
            TransportError: the call did not reach the store, or its effect is unknown.
            ResourceExhaustedError: `store_full`.
        """

    def begin(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Callable[[], Reply]:
        """Send one call, and return a function that waits for its reply, so that the caller can work meanwhile.

        The function must be called once, in the same thread. Like this method, it raises what `call` raises. A store
        that cannot send without waiting makes the call when the reply is asked for.
        """
        return lambda: self.call(function, partition, arguments, timeout)

    @abstractmethod
    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        """Make many calls, each of them atomic, in few round trips per server; an error takes the place of a reply.

        A bounded number of calls is in flight at a time. Servers are called in parallel.
        """

    def begin_many(
        self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT
    ) -> Callable[[], list[Reply | EngineError]]:
        """Send the first of many calls, and return a function that does the rest of `call_many`.

        The function must be called once, in the same thread. A store that cannot send without waiting makes all calls
        when the replies are asked for.
        """
        return lambda: self.call_many(calls, timeout)

    def join(self, connection: object) -> TransactionCall:
        """Return a function that calls stored functions in the transaction of the caller's connection.

        Raises:
            ValidationError: `invalid_input`, the store has no such transactions, or the connection cannot be used.
        """
        raise ValidationError(
            "invalid_input",
            f"connection= needs a postgresql:// store, and this is a {self.label} store: leave it out "
            f"(it is a {type(connection).__name__}).",
        )

    def begin_transaction(self) -> StoreTransaction:
        """Begin a transaction for a handler, on a new connection.

        Raises:
            ValidationError: `invalid_input`, the store has no such transactions.
            TransportError: the store cannot be reached.
        """
        raise ValidationError(
            "invalid_input", f"transaction() needs a postgresql:// store, and this is a {self.label} store."
        )

    @abstractmethod
    def subscribe(self, topic: str) -> Subscription:
        """Subscribe to a topic, and receive every message that is sent after this call has returned."""

    @abstractmethod
    def wake(self, topic: str, message: bytes) -> None:
        """Send a message to every subscription of a topic."""

    @abstractmethod
    def ping(self) -> None:
        """Check that the store answers.

        Raises:
            TransportError: the store does not answer.
        """

    @abstractmethod
    def info(self) -> StoreInfo:
        """Return what the store reports about itself now."""

    @abstractmethod
    def close(self) -> None:
        """Close every connection; a second call does nothing, and a closed store must not be used."""
