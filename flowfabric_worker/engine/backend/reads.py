"""The operations of the area reads, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

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
    """Read executions, lanes and the store's clock."""

    def list_expired_leases(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListExpiredLeasesPage:
        """List the executions whose lease expired or was revoked, and that no worker has claimed since.

        Args:
            partition: the key of one partition, such as `{fp:0}`; None for all.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most executions of the page, 0 to 1,000.

        Returns:
            A page of leases, by execution id.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_partition_key`, `partition_mismatch`, `invalid_input`.
        """
        raise UnavailableError("list_expired_leases")

    def describe_execution(self, execution_id: ExecutionId) -> ExecutionSnapshot | None:
        """Read the present state of an execution.

        Args:
            execution_id: the execution.

        Returns:
            The execution, or None if there is none.

        Raises:
            ValidationError: `corruption`, the record is damaged; the message names the field.
        """
        raise UnavailableError("describe_execution")

    def read_execution_info(self, execution_id: ExecutionId) -> ExecutionInfo | None:
        """Read everything about an execution except its payload and its result.

        Args:
            execution_id: the execution.

        Returns:
            The execution, or None if there is none.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("read_execution_info")

    def read_execution_state(self, execution_id: ExecutionId) -> PublicState | None:
        """Read the public state of an execution.

        Args:
            execution_id: the execution.

        Returns:
            The state, or None if there is no such execution.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("read_execution_state")

    def get_execution_result(self, execution_id: ExecutionId) -> bytes | None:
        """Read the result of a completed execution.

        Args:
            execution_id: the execution.

        Returns:
            The result, or None if there is none, the execution is not completed, or does not exist.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("get_execution_result")

    def list_executions(
        self,
        partition: str | None = None,
        cursor: ExecutionId | None = None,
        limit: int = 100,
        filter: ExecutionFilter | None = None,  # noqa: A002  the name that the operation has
    ) -> ListExecutionsPage:
        """List the executions of the namespace by id.

        Lanes and the states of `INDEXED_STATES` have indexes. For other filters executions are scanned one by one, at
        most about 10,000 per page, so that a page may be short or empty although there is a next one; its `looked_at`
        and `unindexed` tell why. A damaged execution that was set aside matches every filter.

        Args:
            partition: the key of one partition, such as `{fp:0}`; None for all.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most executions of the page, 0 to 1,000.
            filter: which executions to list; None for all.

        Returns:
            A page of executions; a damaged one is a row that says what is damaged.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_partition_key`, `partition_mismatch`, `invalid_input`.
        """
        raise UnavailableError("list_executions")

    def list_lanes(self, cursor: str | None = None, limit: int = 100) -> ListLanesPage:
        """List the lanes of the namespace by name, with the number of executions per public state.

        Args:
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most lanes of the page, 0 to 1,000.

        Returns:
            A page of lanes.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_lanes")

    def explain_execution(self, execution_id: ExecutionId) -> Explanation | None:
        """Explain in words why an execution is not running.

        Args:
            execution_id: the execution.

        Returns:
            A code and a sentence, or None if there is no such execution.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("explain_execution")

    def ping(self) -> None:
        """Check that the store answers, or raise `TransportError`."""
        raise UnavailableError("ping")

    def backend_label(self) -> str:
        """Return the kind of the store, for logs and metrics."""
        return "unknown"

    def server_time(self) -> int:
        """Return the moment of the store's clock, in ms since 1970."""
        raise UnavailableError("server_time")
