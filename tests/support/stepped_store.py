"""A store between whose calls something else happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply, Store
from tests.support.lossy_store import LosingStore


class Killed(BaseException):
    """The process of a caller ended between two calls."""


class SteppedStore(LosingStore):
    """A store that runs an action once, after so many calls.

    Attributes:
        sent: the functions that were called since the action was set.
    """

    def __init__(self, behind: Store) -> None:
        super().__init__(behind)
        self.sent: list[str] = []
        self._last = 0
        self._action: Callable[[], object] | None = None

    def after(self, calls: int, action: Callable[[], object]) -> None:
        """Run `action` after so many more calls."""
        self.sent, self._last, self._action = [], calls, action

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        reply = super().call(function, partition, arguments, timeout)
        self._count(function)
        return reply

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        replies = super().call_many(calls, timeout)
        for call in calls:
            self._count(call.function)
        return replies

    def _count(self, function: str) -> None:
        self.sent.append(function)
        action = self._action
        if action is not None and len(self.sent) == self._last:
            self._action = None
            action()


def stepped(engine: Engine) -> tuple[Engine, SteppedStore]:
    """Return another engine on the same store, and the store between whose calls something can happen."""
    store = SteppedStore(engine.store)
    tried = Engine(lambda: (store, None))
    tried.prepare()
    return tried, store


def kill() -> None:
    """End the caller, as SIGKILL would."""
    raise Killed


def killed_after(engine: Engine, steps: int, act: Callable[[Engine], object]) -> None:
    """Let another process make some calls of `act` and die, if it makes so many."""
    tried, store = stepped(engine)
    store.after(steps, kill)
    try:
        act(tried)
    except Killed:
        assert len(store.sent) == steps
    else:
        assert len(store.sent) < steps
