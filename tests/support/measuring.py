"""A store that measures its calls: commands, bytes, and what a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Reply
from flowfabric_worker.engine.types.claiming import Claimed
from tests.support.executions import raw_client, raw_key, request
from tests.support.lossy_store import LosingStore


def size_of(value: object) -> int:
    """Return how many bytes a reply has."""
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    return len(value) if isinstance(value, bytes) else 8


class Measuring(LosingStore):
    """A store that keeps the most commands that a call of each function sent, and the most bytes that it replied."""

    def __init__(self, behind: Any, client: Any) -> None:
        super().__init__(behind)
        self.client = client
        self.commands: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        before = self._sent()
        reply = super().call(function, partition, arguments, timeout)
        self.commands[function] = max(self.commands.get(function, 0), self._sent() - before)
        self.bytes[function] = max(self.bytes.get(function, 0), size_of(reply))
        return reply

    def _sent(self) -> int:
        stats = self.client.info("commandstats").items()
        return sum(int(stat["calls"]) for name, stat in stats if "fcall" not in name and name != "cmdstat_info")


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
