"""What a store is: named functions, each an atomic step in one partition, and topics to wait on.

A store knows nothing of executions. It installs the stored functions, calls one by name in a partition, calls many at
once, waits on a topic, wakes a topic, and turns its driver's errors into `EngineError`s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

from flowfabric_worker.engine.errors import EngineError

Argument: TypeAlias = bytes | str | int
Reply: TypeAlias = list[Any]
"""A nested list of bytes, ints and None, the same on every store."""

CALL_TIMEOUT = 5.0


@attrs.frozen
class Call:
    """One call of a stored function."""

    function: str
    partition: int
    arguments: Sequence[Argument]


@attrs.frozen(kw_only=True)
class StoreInfo:
    """What a store says of itself, and what an operator should know of it.

    Attributes:
        servers: how many servers hold its partitions now.
        calls: functions that its servers have run since they started; 0 where they do not tell.
        busy_us: microseconds that those took.
    """

    product: str
    version: str
    warnings: tuple[str, ...] = ()
    servers: int = 1
    calls: int = 0
    busy_us: int = 0


class Subscription(ABC):
    """A connection that listens on one topic. One thread at a time uses it; another one may call `close`."""

    @abstractmethod
    def wait(self, timeout: float) -> list[bytes]:
        """Block until messages come, at most `timeout` seconds; return those that came, oldest first.

        Raises:
            TransportError: the connection is lost; what was sent meanwhile is lost too.
        """

    @abstractmethod
    def close(self) -> None:
        """End the subscription and a `wait` that is under way. May be called again."""


class Store(ABC):
    """A place that holds the engine's data.

    Attributes:
        label: names the kind of store in handles, logs and metrics.
        default_partitions: how many partitions a new store of this kind gets.
        counts_listeners: a function learns how many listen on a topic; false where other servers have listeners.
    """

    label: str
    default_partitions: int = 1
    counts_listeners: bool = True

    @abstractmethod
    def install(self) -> bool:
        """Put the stored functions of this release where they are missing; return True if they were missing somewhere.

        Those of other releases stay.

        Raises:
            UnavailableError: `store_not_supported`, the server is too old or set up to lose data.
            TransportError: unreachable, wrong password, or no right to install functions.
        """

    @abstractmethod
    def check_rights(self) -> None:
        """Return if this store's user may do everything that the stored functions and this store will do.

        Raises:
            TransportError: `permission_denied`; the message says what to grant.
        """

    @abstractmethod
    def other_releases(self) -> tuple[str, ...]:
        """Return the names of the other releases of this package whose functions are still installed."""

    @abstractmethod
    def remove_release(self, name: str) -> None:
        """Remove what another release installed, everywhere."""

    @abstractmethod
    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        """Run one function atomically in one partition, in one round trip, and return its reply.

        Missing functions are installed and the call repeated once; nothing else is ever repeated here.

        Raises:
            TransportError: what became of the call is not known, or it did not reach the store.
            ResourceExhaustedError: `store_full`.
        """

    def begin(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Callable[[], Reply]:
        """Send one call, and return a function that waits for its reply: the caller may do other work meanwhile.

        That function is called once, in the same thread, and raises what `call` raises, as this one does. A store that
        cannot send without waiting calls when the reply is asked for.
        """
        return lambda: self.call(function, partition, arguments, timeout)

    @abstractmethod
    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        """Run many calls, each atomic by itself, in few round trips per server; an error takes its call's place.

        Only a bounded part of them is under way at a time. Servers are called side by side.
        """

    @abstractmethod
    def subscribe(self, topic: str) -> Subscription:
        """Listen on a topic from now on: what is sent after this returns is seen."""

    @abstractmethod
    def wake(self, topic: str, message: bytes) -> None:
        """Send a message to every subscription that listens on the topic now."""

    @abstractmethod
    def ping(self) -> None:
        """Return when the store answers.

        Raises:
            TransportError: it does not.
        """

    @abstractmethod
    def info(self) -> StoreInfo:
        """Return what the store says of itself at this moment."""

    @abstractmethod
    def close(self) -> None:
        """Close every connection. May be called again; a closed store is not used any more."""
