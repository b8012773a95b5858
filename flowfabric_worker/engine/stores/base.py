"""What a store is: named functions, each an atomic step in one partition, and topics to wait on.

A store does not know executions. It installs the stored functions, calls one by name in a partition, calls many at
once, waits on a topic, wakes a topic, and turns the errors of its driver into `EngineError`s.
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
    """What a store tells about itself.

    Attributes:
        servers: how many servers hold its partitions now.
        calls: how many functions its servers have run since they started; 0 if they do not tell.
        busy_us: how long these took, in microseconds.
    """

    product: str
    version: str
    warnings: tuple[str, ...] = ()
    servers: int = 1
    calls: int = 0
    busy_us: int = 0


class Subscription(ABC):
    """A connection that listens on one topic. One thread at a time uses it; another thread may call `close`."""

    @abstractmethod
    def wait(self, timeout: float) -> list[bytes]:
        """Block for at most `timeout` seconds until messages arrive; return them, oldest first.

        Raises:
            TransportError: the connection is lost, with the messages that were sent since.
        """

    @abstractmethod
    def close(self) -> None:
        """End the subscription, and a `wait` that another thread is in. It may be called again."""


class Store(ABC):
    """A place that holds the engine's data.

    Attributes:
        label: the kind of store, for handles, logs and metrics.
        default_partitions: how many partitions a new store of this kind gets.
        counts_listeners: whether a function learns how many listen on a topic; False if other servers have listeners.
    """

    label: str
    default_partitions: int = 1
    counts_listeners: bool = True

    @abstractmethod
    def install(self) -> bool:
        """Install the stored functions of this release where they are missing; return True if any were missing.

        The functions of other releases stay.

        Raises:
            UnavailableError: `store_not_supported`, the server is too old or set up to lose data.
            TransportError: the store cannot be reached, or refuses the password or the right to install functions.
        """

    @abstractmethod
    def check_rights(self) -> None:
        """Check that this store's user may do everything that the stored functions and this store do.

        Raises:
            TransportError: `permission_denied`; the message says what to grant.
        """

    @abstractmethod
    def other_releases(self) -> tuple[str, ...]:
        """Return the names of the other releases of this package whose functions are installed."""

    @abstractmethod
    def remove_release(self, name: str) -> None:
        """Remove what another release installed, on every server."""

    @abstractmethod
    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        """Call one function atomically in one partition, in one round trip, and return its reply.

        If functions are missing, they are installed and the call is repeated once; nothing else is repeated here.

        Raises:
            TransportError: the call did not reach the store, or its effect is unknown.
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
        """Make many calls, each atomic by itself, in few round trips per server; an error takes its call's place.

        A bounded number of calls is under way at a time. Servers are called in parallel.
        """

    @abstractmethod
    def subscribe(self, topic: str) -> Subscription:
        """Subscribe to a topic; every message that is sent after this call returns is received."""

    @abstractmethod
    def wake(self, topic: str, message: bytes) -> None:
        """Send a message to every subscription of a topic."""

    @abstractmethod
    def ping(self) -> None:
        """Return if the store answers.

        Raises:
            TransportError: it does not.
        """

    @abstractmethod
    def info(self) -> StoreInfo:
        """Return what the store tells about itself now."""

    @abstractmethod
    def close(self) -> None:
        """Close every connection. It may be called again; a closed store must not be used."""
