"""The one implementation of the engine, assembled from its rooms; it runs on every store."""

from __future__ import annotations

from flowfabric_worker.engine.admin import Admin
from flowfabric_worker.engine.attempts import AttemptOperations
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.core import DEFAULT_RETRY_FOR
from flowfabric_worker.engine.feed import Feed
from flowfabric_worker.engine.limits import Limits
from flowfabric_worker.engine.maintenance import Maintenance
from flowfabric_worker.engine.reads import Reads
from flowfabric_worker.engine.reservations import Reservations
from flowfabric_worker.engine.schedules import Schedules
from flowfabric_worker.engine.stores import anchored_url, open_store
from flowfabric_worker.engine.streams import Streams
from flowfabric_worker.engine.suspension import Suspension
from flowfabric_worker.engine.workers import Workers


class Engine(
    Schedules,
    Suspension,
    Streams,
    Reservations,
    AttemptOperations,
    Admin,
    Reads,
    Workers,
    Feed,
    Maintenance,
    EngineBackend,
):
    """An engine on a store. Nothing is connected before the first call; safe to share between threads.

    Its constructor is that of `EngineCore`; `open_engine` makes one from a URL.
    """


def open_engine(
    url: str, *, namespace: str = "default", limits: Limits | None = None, retry_for: float = DEFAULT_RETRY_FOR
) -> Engine:
    """Return an engine on the store that a URL names.

    Args:
        url: such as `memory://`, `embedded://.flowfabric` or `valkey://localhost:6379`; a relative directory begins at
            the working directory of this moment.
        namespace: the tenant whose lanes, keys and listings it works with.
        limits: what an operator set; None for the defaults.
        retry_for: seconds for which a call is sent again after a failure of the connection; 0 to send it once.

    Raises:
        ValidationError: the namespace is not valid. A wrong URL is told at the first call.
    """
    # Once, here: a process that goes to another directory before its first call, or after a fork, means the same store.
    anchored = anchored_url(url)
    return Engine(lambda: open_store(anchored), namespace=namespace, limits=limits, retry_for=retry_for)


def forget_memory(name: str) -> None:
    """Let go of the store `memory://NAME`, which else lives as long as this process; open engines keep it."""
    # Here, so that nobody loads a driver who does not use it.
    from flowfabric_worker.engine.stores.memory import forget_memory as forget

    forget(name)
