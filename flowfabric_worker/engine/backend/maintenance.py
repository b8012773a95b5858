"""The operations of the area maintenance, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from datetime import datetime, timedelta

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.types.maintenance import MaintenanceResult, PrepareResult


class MaintenanceBackend:
    """Set a store up, handle what is due, and close the engine."""

    def prepare(self, *, testing: bool = False) -> PrepareResult:
        """Load the functions, set up a new store, and check that its settings lose no data.

        Any number of processes may call it, also at the same time.

        Args:
            testing: True to give a new store a clock that can be set; an existing store is not changed.

        Returns:
            Whether this call set up the store, and its settings.

        Raises:
            ConflictError: `configuration_mismatch`.
            TransportError: `permission_denied`, the store's user lacks a right that is needed.
            UnavailableError: `store_not_supported`, the store is too old, newer than this release, or set to lose data.
        """
        raise UnavailableError("prepare")

    def prune_libraries(self) -> tuple[str, ...]:
        """Remove the function libraries of other releases from the servers.

        A worker of such a release that still runs loads its library again at its next call.

        Returns:
            The names of the removed libraries.
        """
        raise UnavailableError("prune_libraries")

    def erase(self) -> None:
        """Remove everything from a store that was prepared for tests. No other process may use the store meanwhile.

        Raises:
            ConflictError: `configuration_mismatch`, the store was not prepared for tests.
        """
        raise UnavailableError("erase")

    def run_upkeep(self, limit: int = 200) -> MaintenanceResult:
        """Handle entries that are due; claims handle some of them too.

        Args:
            limit: the most entries to handle per partition.

        Returns:
            How many entries were handled, and when the next one is due.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("run_upkeep")

    def set_clock(self, moment: datetime | None) -> None:
        """Stop the clock of a store that was prepared for tests.

        Args:
            moment: the moment at which the clock stops; None lets it run again.

        Raises:
            ValidationError: `clock_not_settable`, the store was not prepared for tests.
        """
        raise UnavailableError("set_clock")

    def shutdown_prepare(self, grace: timedelta = timedelta()) -> None:
        """Close the engine after its calls have ended.

        Args:
            grace: how long to wait for calls that are in flight.

        Raises:
            EngineTimeoutError: calls had not ended in time; the engine was closed anyway.
        """
        raise UnavailableError("shutdown_prepare")
