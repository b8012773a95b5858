"""The operations of the area maintenance, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from datetime import datetime, timedelta

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.types.maintenance import MaintenanceResult, PrepareResult


class MaintenanceBackend:
    """Set a store up, handle what is due, and close the engine."""

    def prepare(self, *, testing: bool = False) -> PrepareResult:
        """Load the functions, set the store up if it is new, and check that it keeps what it is given.

        Any number of processes may call it, also at once.

        Args:
            testing: let the clock of a new store be set; an existing store stays as it is.

        Returns:
            Whether this call set the store up, and how it is set up.

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
        """Handle what is due. Claims do the same in smaller parts.

        Args:
            limit: most entries to handle per partition.

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
        """Close the engine after its calls have finished.

        Args:
            grace: how long calls that are under way may take to finish.

        Raises:
            EngineTimeoutError: calls had not finished in time; the engine was closed nevertheless.
        """
        raise UnavailableError("shutdown_prepare")
