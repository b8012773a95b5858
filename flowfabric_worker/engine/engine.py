"""The implementation of the engine, which is assembled from its areas and runs on every store."""

from __future__ import annotations

from flowfabric_worker.engine.admin import Admin
from flowfabric_worker.engine.attempts import AttemptOperations
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.budgets import Budgets
from flowfabric_worker.engine.connection import DEFAULT_RETRY_FOR
from flowfabric_worker.engine.feed import Feed
from flowfabric_worker.engine.flows import Flows
from flowfabric_worker.engine.limits import Limits
from flowfabric_worker.engine.maintenance import Maintenance
from flowfabric_worker.engine.quotas import Quotas
from flowfabric_worker.engine.reads import Reads
from flowfabric_worker.engine.reservations import Reservations
from flowfabric_worker.engine.schedules import Schedules
from flowfabric_worker.engine.streams import Streams
from flowfabric_worker.engine.suspension import Suspension
from flowfabric_worker.engine.unusable_arguments import refuses_unusable_arguments
from flowfabric_worker.engine.workers import Workers


@refuses_unusable_arguments
class Engine(
    Flows,
    Schedules,
    Budgets,
    Quotas,
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
    """An engine on a store. It connects at the first call, and may be shared between threads.

    Its constructor is that of `EngineCore`; `open_engine` creates one from a URL.
    """


def open_engine(
    url: str, *, namespace: str = "default", limits: Limits | None = None, retry_for: float = DEFAULT_RETRY_FOR
) -> Engine:
    """Return an engine on the store that a URL names.

    Args:
        url: such as `memory://`, `embedded://.flowfabric` or `valkey://localhost:6379`; a relative directory is
            resolved against the present working directory.
        namespace: the tenant whose lanes, keys and listings the engine works with.
        limits: the limits of this installation; None for the defaults.
        retry_for: for how many seconds a call is repeated after the connection failed; 0 to send it once.

    Raises:
        ValidationError: the namespace is not valid. An invalid URL is reported at the first call.
    """
    # Import it here, so that importing the package does not load the driver.
    from flowfabric_worker.engine.stores.urls import anchored_url, open_store

    # Make the URL absolute, so that it names the same store after the process has changed its directory.
    anchored = anchored_url(url)
    return Engine(lambda: open_store(anchored), namespace=namespace, limits=limits, retry_for=retry_for)


def forget_memory(name: str) -> None:
    """Delete the store `memory://NAME`, which otherwise lives as long as this process. Open engines keep it."""
    # Import it here, so that the driver is loaded only if a memory store is used.
    from flowfabric_worker.engine.stores.memory import forget_memory as forget

    forget(name)
