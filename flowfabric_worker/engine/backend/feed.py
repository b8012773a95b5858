"""The operations of the area feed, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter, ExecutionOutcome


class FeedBackend:
    """Follow the ends of executions, and wait for one."""

    def subscribe_completions(
        self,
        cursor: str | None = None,
        filter: CompletionFilter | None = None,  # noqa: A002  the name that the operation has
        timeout: timedelta | None = None,
    ) -> Iterator[CompletionEvent]:
        """Yield every end of an execution after a cursor, in order per partition, and block for new ones.

        Args:
            cursor: the cursor of the last event that was seen; None for all that is kept (24 h by default).
            filter: which ends to yield; None for all.
            timeout: how long to wait for the next end before the iteration stops; None for no limit.

        Returns:
            An iterator of events.

        Raises:
            StateError: `cursor_expired`, ends after the cursor were trimmed.
            ValidationError: `invalid_cursor`, `invalid_input`; `corruption`, an entry is damaged.
        """
        raise UnavailableError("subscribe_completions")

    def feed_cursor(self) -> str:
        """Return a cursor after the newest end; a subscription from it yields later ends only."""
        raise UnavailableError("feed_cursor")

    def wait_for_result(self, execution_id: ExecutionId, timeout: timedelta | None = None) -> ExecutionOutcome:
        """Block, without polling, until an execution ends.

        Args:
            execution_id: the execution.
            timeout: how long to wait; None for no limit.

        Returns:
            How the execution ended.

        Raises:
            NotFoundError: `execution_not_found`.
            EngineTimeoutError: the execution has not ended in time; it continues.
            ValidationError: `corruption`.
        """
        raise UnavailableError("wait_for_result")

    def read_outcome(self, execution_id: ExecutionId) -> ExecutionOutcome | None:
        """Read how an execution ended.

        Args:
            execution_id: the execution.

        Returns:
            The outcome, or None if the execution has not ended.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `corruption`.
        """
        raise UnavailableError("read_outcome")
