"""The operations of the area submission, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from collections.abc import Sequence

from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.types.submission import CreateExecutionArgs, CreateExecutionResult


class SubmissionBackend:
    """Create executions."""

    def create_execution(self, args: CreateExecutionArgs) -> CreateExecutionResult:
        """Make an execution, or return with the one that exists under its id or idempotency key.

        Raises:
            ValidationError: an argument is not valid; the message names it.
            ResourceExhaustedError: `too_many_classes`, `store_full`.
        """
        raise UnavailableError("create_execution")

    def create_executions(self, args: Sequence[CreateExecutionArgs]) -> list[CreateExecutionResult | EngineError]:
        """Make many executions, each by itself, in one round trip for 500 of a partition.

        Raises:
            ValidationError: an argument is not valid, or an id or key stands twice; then nothing was made.
        """
        raise UnavailableError("create_executions")
