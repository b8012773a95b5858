"""The operations of the area reads, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.reads import (
    ExecutionFilter,
    ExecutionInfo,
    ExecutionSnapshot,
    Explanation,
    ListExecutionsPage,
    ListExpiredLeasesPage,
    ListLanesPage,
)
from flowfabric_worker.engine.types.states import PublicState


class ReadsBackend:
    """Read what is stored."""

    def list_expired_leases(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListExpiredLeasesPage:
        """Return a page of executions whose lease ran out or was revoked, and that nobody claimed since."""
        raise UnavailableError("list_expired_leases")

    def describe_execution(self, execution_id: ExecutionId) -> ExecutionSnapshot | None:
        """Return an execution at this moment; None if there is none.

        Raises:
            ValidationError: `corruption`, the record is damaged; the message names the field.
        """
        raise UnavailableError("describe_execution")

    def read_execution_info(self, execution_id: ExecutionId) -> ExecutionInfo | None:
        """Return everything about an execution but its payload and result; None if there is none.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("read_execution_info")

    def read_execution_state(self, execution_id: ExecutionId) -> PublicState | None:
        """Return an execution's public state; None if there is no such execution.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("read_execution_state")

    def get_execution_result(self, execution_id: ExecutionId) -> bytes | None:
        """Return the result of a completed execution; None if it has none, is not completed, or does not exist."""
        raise UnavailableError("get_execution_result")

    def list_executions(
        self,
        partition: str | None = None,
        cursor: ExecutionId | None = None,
        limit: int = 100,
        filter: ExecutionFilter | None = None,  # noqa: A002  the name that the operation has
    ) -> ListExecutionsPage:
        """Return a page of the namespace's executions by id, of one partition or of all, with filters.

        A lane and the states of `INDEXED_STATES` have indexes. For others, executions are looked at one by one,
        about 10,000 a page at most. So a page may be short, even empty, and yet have a next one; its `looked_at` and
        `unindexed` say why. A damaged execution that was set aside is shown whatever the filter asks for.
        """
        raise UnavailableError("list_executions")

    def list_lanes(self, cursor: str | None = None, limit: int = 100) -> ListLanesPage:
        """Return a page of the namespace's lanes by name, with what each holds per public state."""
        raise UnavailableError("list_lanes")

    def explain_execution(self, execution_id: ExecutionId) -> Explanation | None:
        """Why an execution is not running, in words; None if there is no such execution."""
        raise UnavailableError("explain_execution")

    def ping(self) -> None:
        """Return when the store answers."""
        raise UnavailableError("ping")

    def backend_label(self) -> str:
        """Return the kind of store, for logs and metrics."""
        return "unknown"

    def server_time(self) -> int:
        """Return the store's clock, in ms since 1970."""
        raise UnavailableError("server_time")
