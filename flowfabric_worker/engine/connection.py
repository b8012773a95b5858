"""The connection of an engine to its store: it opens, sets up and closes the store, and counts the calls in flight."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import uuid4

from flowfabric_worker.engine import forks as forking
from flowfabric_worker.engine.call_retries import InFlightCalls, call_with_retries
from flowfabric_worker.engine.errors import ConflictError, UnavailableError, ValidationError
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.limits import Limits
from flowfabric_worker.engine.listener import Listener, Waiter
from flowfabric_worker.engine.partitions import MAX_PARTITIONS, partition_key
from flowfabric_worker.engine.stores.base import Reply, Store
from flowfabric_worker.engine.stores.library import CONTRACT_MAJOR
from flowfabric_worker.engine.waitpoint_secrets import Secret, SecretRing, first_secret
from flowfabric_worker.engine.wire import pack

T = TypeVar("T")

DEFAULT_RETRY_FOR = 5.0


class EngineConnection:
    """The store of an engine, which is opened at the first call.

    Args:
        open_store: opens the store and returns it with the number of partitions that its URL asks for, or None; called
            once, at the first call.
        namespace: the tenant whose lanes, keys and listings the engine works with.
        limits: the limits of this installation; None for the defaults.
        retry_for: for how many seconds a call is repeated after the connection failed; 0 to send it once.
    """

    def __init__(
        self,
        open_store: Callable[[], tuple[Store, int | None]],
        *,
        namespace: str = "default",
        limits: Limits | None = None,
        retry_for: float = DEFAULT_RETRY_FOR,
    ) -> None:
        self.namespace = check_name(namespace, "namespace")
        self.limits = limits or Limits()
        self.retry_for = retry_for
        self._open_store = open_store
        self._wanted_partitions: int | None = None
        self._partitions = 0
        self._packed_namespace = pack((namespace,))
        self._begin()
        forking.remember(self)

    def _begin(self) -> None:
        self._starting = threading.Lock()
        self._opened: Store | None = None
        self._listener: Listener | None = None
        self._waiters: weakref.WeakSet[Waiter] = weakref.WeakSet()
        self.is_closed = False
        self.under_way = InFlightCalls()
        # Per partition, the known secrets that sign waitpoint tokens.
        self.secret_rings: dict[int, SecretRing] = {}
        # What the last set-up was told of keys that hold another type of value.
        self.mistyped: list[bytes] = []

    def reset_after_fork(self) -> None:
        """Drop the connections in a forked process, which are the parent's."""
        self._begin()

    # Set-up

    @property
    def store(self) -> Store:
        """The store, which is opened at its first use."""
        if self._opened is None:
            with self._starting:
                if self._opened is None:
                    self._opened, self._wanted_partitions = self._open_store()
        return self._opened

    @property
    def partitions(self) -> int:
        """The number of partitions of the store; a new store is set up."""
        if not self._partitions:
            self.set_up(testing=False)
        return self._partitions

    def set_up(self, *, testing: bool) -> tuple[bool, bool]:
        """Set up a new store, or check the settings of an existing one.

        Args:
            testing: True to give a new store a clock that can be set.

        Returns:
            True if this call set up the store, and True if its clock can be set.

        Raises:
            ConflictError: `configuration_mismatch`.
            TransportError: `permission_denied`, the store's user lacks a right that is needed.
            UnavailableError: `store_not_supported`, a release with a newer contract wrote the store.
            ValidationError: `corruption`, the stored settings are damaged.
        """
        store = self.store
        # Check rights first, because a stored function that is refused a command leaves half of its writes behind.
        self.call_with_retries(store.check_rights)
        wanted = self._wanted_partitions or store.default_partitions
        status, major, count, stored_testing, *stored_secret = self._prepare_partition(
            0, wanted, testing, first_secret()
        )
        stored_major = _stored_number(major, "major", sys.maxsize)
        if stored_major > CONTRACT_MAJOR:
            raise UnavailableError(
                "prepare",
                f"The store was written by a newer release (contract {stored_major}); upgrade flowfabric_worker.",
                "store_not_supported",
            )
        partitions = self._check_count(_stored_number(count, "partitions", MAX_PARTITIONS))
        secret = self._remember_secret(0, stored_secret)
        self.mistyped = stored_secret[3:]
        for partition in range(1, partitions):
            _, _, _, _, *stored_secret = self._prepare_partition(partition, partitions, stored_testing == b"1", secret)
            self._remember_secret(partition, stored_secret)
            self.mistyped += stored_secret[3:]
        self._partitions = partitions
        return status == b"prepared", stored_testing == b"1"

    def _check_count(self, stored: int) -> int:
        """Refuse another number of partitions than the store was set up with."""
        if self._wanted_partitions not in (None, stored):
            raise ConflictError(
                "configuration_mismatch",
                f"The store was set up with {stored} partitions, not {self._wanted_partitions}; leave the number out "
                "to take the stored one.",
                what="partitions",
                stored=stored,
                given=self._wanted_partitions,
            )
        return stored

    def _prepare_partition(self, partition: int, partitions: int, testing: bool, secret: Secret) -> Reply:
        age = self.limits.feed_age_ms
        wanted = (CONTRACT_MAJOR, partitions, "1" if testing else "0", new_call_id(), "" if age is None else age)
        arguments = (*wanted, *secret.stored)
        return self.call_with_retries(lambda: self.store.call("prepare", partition, arguments))

    def _remember_secret(self, partition: int, stored: Sequence[bytes]) -> Secret:
        """Cache the secret with which a partition signs waitpoint tokens, and return it."""
        try:
            secret = Secret(stored[0].decode(), bytes.fromhex(stored[1].decode()))
        except ValueError:
            raise _damaged_setting("secrets", partition, "the secret that signs") from None
        self.secret_rings[partition] = SecretRing.of(secret)
        return secret

    @property
    def listener(self) -> Listener:
        """The listener, which subscribes at its first use."""
        if self._listener is None:
            with self._starting:
                if self._listener is None:
                    store = self._opened
                    assert store is not None, "the listener is wanted only after a call"
                    self._listener = self.call_with_retries(lambda: Listener(store))
        return self._listener

    def waiter(self) -> Waiter:
        """Return a new waiter, which is stopped when this engine is closed."""
        waiter = Waiter(lambda topic: self.call_with_retries(lambda: self.store.subscribe(topic)), self.partitions)
        with self._starting:
            self._waiters.add(waiter)
            if self.is_closed:
                waiter.stop()
        return waiter

    def close(self) -> None:
        """Stop listening and waiting, and close every connection; a second call does nothing."""
        with self._starting:
            self.is_closed = True
            for waiter in self._waiters:
                waiter.stop()
        if self._listener is not None:
            self._listener.close()
        if self._opened is not None:
            self._opened.close()

    def call_with_retries(self, attempt: Callable[[], T]) -> T:
        """Call `attempt`, and repeat it for a time while the connection fails, because any call may be repeated."""
        with self.under_way:
            return self.call_in_flight(attempt)

    def call_in_flight(self, attempt: Callable[[], T]) -> T:
        """Do the same as `call_with_retries`, for a caller that counts the call as in flight."""
        return call_with_retries(attempt, self.retry_for)


def new_call_id() -> str:
    """Return a new name for a call, by which its repeats are recognized and get the first reply."""
    return uuid4().hex


def _stored_number(value: bytes | None, name: str, most: int) -> int:
    """Return a number of the stored settings, which is 1 to `most`.

    Raises:
        ValidationError: `corruption`.
    """
    number = int(value) if value is not None and value.isdigit() and len(value) < 10 else 0
    if not 1 <= number <= most:
        raise _damaged_setting("meta", 0, f"{name} is {value!r:.100}")
    return number


def _damaged_setting(key: str, partition: int, what: str) -> ValidationError:
    return ValidationError(
        "corruption",
        f"The stored settings of partition {partition} are damaged: {what}. Restore the store's key "
        f"'...:{partition_key(partition)}:{key}' from a backup.",
        field=key,
    )
