"""The operations of the area damage, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.damage import ListDamagedPage


class DamageBackend:
    """List damaged executions."""

    def list_damaged(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListDamagedPage:
        """List a page of the executions whose records are damaged, by id, with what is wrong with each.

        A damaged execution is handed out no more and changes no more; at most 1,000 are listed per partition. `purge`
        removes it.
        """
        raise UnavailableError("list_damaged")
