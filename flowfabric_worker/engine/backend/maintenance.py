"""The operations of the area maintenance, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from datetime import datetime, timedelta

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.types.maintenance import MaintenanceResult, PrepareResult


class MaintenanceBackend:
    """Set a store up, and do what time requires."""

    def prepare(self, *, testing: bool = False) -> PrepareResult:
        """Load the functions, sets the store up if nobody did, and check that it keeps what it is given.

        Any number may call it at once, at any time.

        Args:
            testing: let the clock of a new store be set; an existing one stays what it is.

        Raises:
            ConflictError: `configuration_mismatch`.
            UnavailableError: `store_not_supported`, too old, newer than this release, or set to lose data.
        """
        raise UnavailableError("prepare")

    def prune_libraries(self) -> tuple[str, ...]:
        """Remove the function libraries that other releases left in the servers; return their names.

        A worker of such a release that still runs loads its own again at its next call.
        """
        raise UnavailableError("prune_libraries")

    def erase(self) -> None:
        """Remove everything from a store that was prepared for tests. Nobody else may be using it.

        Raises:
            ConflictError: `configuration_mismatch`, the store was not prepared for tests.
        """
        raise UnavailableError("erase")

    def run_upkeep(self, limit: int = 200) -> MaintenanceResult:
        """Handle what is due, up to `limit` entries of each partition. Claims do the same in small portions."""
        raise UnavailableError("run_upkeep")

    def set_clock(self, moment: datetime | None) -> None:
        """Stop the store's clock at a moment; None lets it run. Only in a store that was prepared for tests.

        Raises:
            ValidationError: `clock_not_settable`.
        """
        raise UnavailableError("set_clock")

    def shutdown_prepare(self, grace: timedelta = timedelta()) -> None:
        """End what this engine has open; call under way get `grace` to finish.

        Raises:
            EngineTimeoutError: some had not finished; everything is closed all the same.
        """
        raise UnavailableError("shutdown_prepare")
