"""A store that measures its calls: commands, bytes, and what a test asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply
from flowfabric_worker.engine.types.claiming import Claimed
from tests.support.executions import raw_client, raw_key, request
from tests.support.lossy_store import LosingStore


def size_of(value: object) -> int:
    """Return how many bytes a reply has."""
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    return len(value) if isinstance(value, bytes) else 8


def commands_run(client: Any) -> int:
    """Return how many commands a server has run, those in functions and the calls of functions included."""
    stats = client.info("commandstats").items()
    return sum(int(stat["calls"]) for name, stat in stats if name != "cmdstat_info")


class Measuring(LosingStore):
    """A store that measures each call by itself.

    Attributes:
        calls: how many calls there were.
        commands: the most commands that a call of each function ran.
        bytes: the most bytes that a call of each function replied.
    """

    def __init__(self, behind: Any, client: Any) -> None:
        super().__init__(behind)
        self.client = client
        self.calls = 0
        self.commands: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        before = commands_run(self.client)
        try:
            reply = super().call(function, partition, arguments, timeout)
        finally:
            self.calls += 1
            self.commands[function] = max(self.commands[function], commands_run(self.client) - before)
        self.bytes[function] = max(self.bytes[function], size_of(reply))
        return reply

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        return [self.call(each.function, each.partition, each.arguments, timeout) for each in calls]


def noted(engine: Engine, function: str, measure: Callable[[Reply], int]) -> list[int]:
    """Return a list that receives a number for each reply of a function."""
    numbers: list[int] = []
    send = engine.store.call

    def call(name: str, *arguments: Any) -> Reply:
        reply = send(name, *arguments)
        if name == function:
            numbers.append(measure(reply))
        return reply

    engine.store.call = call  # type: ignore[method-assign]
    return numbers


def claimed_all(engine: Engine, *lanes: str) -> list[Claimed]:
    """Claim everything that is ready, by one request after the other."""
    claimed: list[Claimed] = []
    while more := engine.claim_many(request(*lanes, limit=100, lease=timedelta(hours=10))):
        claimed += more
    return claimed


def stored(engine: Engine, name: str) -> tuple[Any, str]:
    """Return a plain client of the server, and the full name of a key."""
    behind = Engine(lambda: (engine.store.behind, None))
    return raw_client(behind), raw_key(behind, 0, name)
