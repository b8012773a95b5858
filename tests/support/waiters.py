"""Workers that wait for work in threads of their own, and how many of them are waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import uuid4

from flowfabric_worker.engine.class_cache import lane_arguments
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.listener import Waiter
from flowfabric_worker.engine.types.claiming import Claimed, ClaimRequest
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from tests.support.executions import LANE, TASK, claimed_ids, created, ids_in, raw_client, raw_key, request
from tests.support.servers import wait_until

LONG = timedelta(seconds=30)
# A waiter that is not woken looks by itself after 10 s; one that is woken returns well before that.
AT_ONCE = 2.0

Opener: TypeAlias = Callable[[], Engine]


class Waiting:
    """A claim that waits in a thread of its own, until it has work or its engine is closed.

    Attributes:
        claimed: what it got; None while it waits.
        took: how long it waited.
    """

    def __init__(self, engine: Engine, claim: ClaimRequest) -> None:
        self.claimed: list[Claimed] | None = None
        self.took = timedelta()
        self._thread = threading.Thread(target=self._run, args=(engine, claim), daemon=True)
        self._thread.start()

    def _run(self, engine: Engine, claim: ClaimRequest) -> None:
        began = time.monotonic()
        claimed = engine.claim_many(claim)
        self.took = timedelta(seconds=time.monotonic() - began)
        self.claimed = claimed

    @property
    def is_over(self) -> bool:
        return self.claimed is not None

    def result(self, within: float = AT_ONCE) -> list[Claimed]:
        """Return what the claim got, at the latest after so many seconds from now."""
        self._thread.join(within)
        assert self.claimed is not None, f"the claim still waits after {within} s"
        return self.claimed


def waiting(engine: Engine, *lanes: str, **changes: Any) -> Waiting:
    """Return a worker that waits for work; it waits when this returns."""
    before = registered(engine)
    waiter = Waiting(engine, request(*lanes, **{"worker": uuid4().hex, "max_wait": LONG, **changes}))
    wait_until(lambda: registered(engine) > before or waiter.is_over, "the worker waits")
    return waiter


def register(engine: Engine, partition: int, count: int = 1, *, heard: bool = True) -> list[Waiter]:
    """Register waiters that do not come; return them, since they are heard only as long as they are kept.

    Args:
        heard: their process listens on their topics.
    """
    waiters = [engine.waiter() for _ in range(count)]
    for waiter in waiters:
        if heard:
            waiter.wait(0)
        look(engine, partition, waiter, heard=heard)
    return waiters


def look(engine: Engine, partition: int, waiter: Waiter, *, heard: bool = True) -> None:
    """Make the call with which a worker finds nothing, and which registers its waiter as the last one."""
    matching = engine.matching_lanes(partition, request())
    counted = "" if heard and not engine.store.counts_listeners else "1"
    head = [str(uuid4()), b"", b"", waiter.name, 1000, 9000, 0, matching.set_name, counted]
    engine.store.call("claim_many", partition, [*head, *lane_arguments(matching.lanes)])


def registered(engine: Engine) -> int:
    """Return how many wait in every partition."""
    return min(
        raw_client(engine, partition).hlen(raw_key(engine, partition, "waiters"))
        for partition in range(engine.partitions)
    )


def known_class(engine: Engine, **changes: Any) -> None:
    """Make every partition know a kind of work, so that more of it is nothing new to those who wait."""
    for partition in range(engine.partitions):
        created(engine, execution_id=ids_in(engine, partition, 1)[0], **changes)
    policy = changes.get("policy", ExecutionPolicy())
    claimed = claimed_ids(
        engine, changes.get("lane", LANE), capabilities=policy.requires, tasks={changes.get("task", TASK)}
    )
    assert len(claimed) == engine.partitions
