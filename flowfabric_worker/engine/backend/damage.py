"""The operations of the area damage, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.damage import ListDamagedPage


class DamageBackend:
    """List damaged executions."""

    def list_damaged(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListDamagedPage:
        """List the executions whose records are damaged, by id.

        A damaged execution is neither handed out nor changed any more; `purge` removes it. At most 1,000 are listed per
        partition.

        Args:
            partition: the key of one partition, such as `{fp:0}`; None for all.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most executions of the page, 0 to 1,000.

        Returns:
            A page of damaged executions, each with a description of the damage.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_partition_key`, `partition_mismatch`, `invalid_input`.
        """
        raise UnavailableError("list_damaged")
