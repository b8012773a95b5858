"""A store that loses replies: the call is carried out, and its caller gets an error."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar
from uuid import uuid4

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.stores.base import (
    CALL_TIMEOUT,
    Argument,
    Call,
    Reply,
    Store,
    StoreInfo,
    Subscription,
)
from flowfabric_worker.engine.stores.valkey import ValkeyStore

T = TypeVar("T")


class LosingStore(Store):
    """A store in front of a real one that, while it is told to, loses the first reply to each call.

    Attributes:
        behind: the real store.
        lost: how many replies were lost.
    """

    def __init__(self, behind: Store) -> None:
        self.behind = behind
        self.label = behind.label
        self.default_partitions = behind.default_partitions
        self.spans_partitions = behind.spans_partitions
        self.lost = 0
        self._loses = False
        self._seen: set[Hashable] = set()
        self._meanwhile: Callable[[], object] | None = None

    @contextmanager
    def losing(self, meanwhile: Callable[[], object] | None = None) -> Iterator[None]:
        """Lose replies for the length of a block; after the first one of a call that writes, call `meanwhile`."""
        self._loses, self._seen, self._meanwhile = True, set(), meanwhile
        try:
            yield
        finally:
            self._loses = False

    def _lose(self, *call: Hashable) -> bool:
        """Return True if the reply to this call is lost: it is when it comes for the first time."""
        if not self._loses or call in self._seen:
            return False
        self._seen.add(call)
        self.lost += 1
        if self._meanwhile is not None and not str(call[0]).startswith("list_"):
            meanwhile, self._meanwhile, self._loses = self._meanwhile, None, False
            meanwhile()
            self._loses = True
        return True

    def _maybe(self, run: Callable[[], T], *call: Hashable) -> T:
        result = run()
        if self._lose(*call):
            raise TransportError(message="The reply was lost.", backend=self.label)
        return result

    def install(self) -> bool:
        return self._maybe(self.behind.install, "install")

    def check_rights(self) -> None:
        self._maybe(self.behind.check_rights, "check_rights")

    def other_releases(self) -> tuple[str, ...]:
        return self._maybe(self.behind.other_releases, "other_releases")

    def remove_release(self, name: str) -> None:
        self._maybe(lambda: self.behind.remove_release(name), "remove_release", name)

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        return self._maybe(
            lambda: self.behind.call(function, partition, arguments, timeout), function, partition, *arguments
        )

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        replies = self.behind.call_many(calls, timeout)
        return [
            TransportError(backend=self.label) if self._lose(call.function, call.partition, *call.arguments) else reply
            for call, reply in zip(calls, replies, strict=True)
        ]

    def subscribe(self, topic: str) -> Subscription:
        return self.behind.subscribe(topic)

    def wake(self, topic: str, message: bytes) -> None:
        self.behind.wake(topic, message)

    def ping(self) -> None:
        self._maybe(self.behind.ping, "ping")

    def info(self) -> StoreInfo:
        return self.behind.info()

    def close(self) -> None:
        """Do nothing: another owner closes the wrapped store."""


class AwayStore(LosingStore):
    """A store some of whose partitions cannot be reached.

    Attributes:
        away: these partitions.
        code: the code of the error: `transport` if connections are refused, `store_timeout` if they hang.
        waits: how often a caller waited for one of them.
        tried: the functions that were called there one by one.
    """

    def __init__(self, behind: Store, away: frozenset[int], code: str = "transport") -> None:
        super().__init__(behind)
        self.away = away
        self.code = code
        self.waits = 0
        self.tried: list[str] = []

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        if partition in self.away:
            self.waits += 1
            self.tried.append(function)
            raise TransportError(self.code, backend=self.label)
        return super().call(function, partition, arguments, timeout)

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        # A store waits for a server once, however many calls go to it.
        self.waits += any(each.partition in self.away for each in calls)
        reachable = [each for each in calls if each.partition not in self.away]
        replies = iter(super().call_many(reachable, timeout))
        return [TransportError(backend=self.label) if each.partition in self.away else next(replies) for each in calls]


# Creating a schema with its tables takes longer than most tests do.
_BESIDE: Final = ("beside0", "beside1", "beside2")
_schemas_of: weakref.WeakKeyDictionary[Engine, Iterator[str]] = weakref.WeakKeyDictionary()


def empty_store_beside(engine: Engine) -> Store:
    """Return an empty store on the same server, under a prefix or in a schema of its own.

    On Postgres the fourth one of an engine has the schema of the first, which is emptied.
    """
    if engine.backend_label() == "postgresql":
        from flowfabric_worker.engine.stores.postgres import PostgresStore
        from tests.support.postgres import emptying

        assert isinstance(engine.store, PostgresStore)
        schema = next(_schemas_of.setdefault(engine, itertools.cycle(_BESIDE)))
        beside = PostgresStore(engine.store._pool, schema=schema, address=engine.store.address)
        with beside.connection() as connection:
            connection.execute(emptying(schema), timeout=CALL_TIMEOUT)
        beside.install()
        return beside
    assert isinstance(engine.store, ValkeyStore)
    store = copy.copy(engine.store)
    store.prefix = f"b{uuid4().hex[:12]}"
    return store
