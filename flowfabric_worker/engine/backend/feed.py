"""The operations of the area feed, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter, ExecutionOutcome


class FeedBackend:
    """Follow the ends of executions."""

    def subscribe_completions(
        self,
        cursor: str | None = None,
        filter: CompletionFilter | None = None,  # noqa: A002  the name that the operation has
        timeout: timedelta | None = None,
    ) -> Iterator[CompletionEvent]:
        """Yield every end of an execution from a cursor on, in order per partition; blocks for new ones.

        Args:
            cursor: behind which to begin; None for everything that is kept (24 h).
            filter: which ends to see.
            timeout: ends when nothing came for so long; None never.

        Raises:
            StateError: `cursor_expired`, what lay behind the cursor was trimmed.
            ValidationError: `invalid_cursor`.
        """
        raise UnavailableError("subscribe_completions")

    def feed_cursor(self) -> str:
        """Return a cursor behind the newest end: a subscription from it sees only what is still to come."""
        raise UnavailableError("feed_cursor")

    def wait_for_result(self, execution_id: ExecutionId, timeout: timedelta | None = None) -> ExecutionOutcome:
        """Block, without polling, until an execution ends.

        Raises:
            NotFoundError: `execution_not_found`.
            EngineTimeoutError: it did not end in time; it goes on.
        """
        raise UnavailableError("wait_for_result")

    def read_outcome(self, execution_id: ExecutionId) -> ExecutionOutcome | None:
        """Return how an execution ended; None while it has not.

        Raises:
            NotFoundError: `execution_not_found`.
        """
        raise UnavailableError("read_outcome")
