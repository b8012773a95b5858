"""The operations of the area submission, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.limits import MAX_BATCH_BYTES, MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.submission import CreateExecutionArgs, CreateExecutionResult


class SubmissionBackend:
    """Create executions."""

    def create_execution(self, args: CreateExecutionArgs) -> CreateExecutionResult:
        """Create an execution, or return the one that exists under its id or idempotency key.

        Args:
            args: what to run, where and when.

        Returns:
            `Created`, or `Duplicate` with the existing execution and whether it is the same request.

        Raises:
            ValidationError: an argument is not valid; the message names it.
            NotFoundError: `budget_not_found`, `quota_policy_not_found`.
            ResourceExhaustedError: `too_many_classes`, `store_full`.
        """
        raise UnavailableError("create_execution")

    def create_executions(self, args: Sequence[CreateExecutionArgs]) -> list[CreateExecutionResult | EngineError]:
        """Create many executions in bounded calls, each independently of the others.

        Args:
            args: what to run, where and when; each id and each idempotency key once.

        Returns:
            For each what `create_execution` returns, or the error.

        Raises:
            ValidationError: an argument is not valid, or `duplicate_in_call`; nothing was created.
            NotFoundError: `budget_not_found`, `quota_policy_not_found`; nothing was created.
        """
        raise UnavailableError("create_executions")

    def create_in_batches(
        self, args: Iterable[CreateExecutionArgs]
    ) -> Iterator[list[CreateExecutionResult | EngineError]]:
        """Create any number of executions in bounded batches, and yield the results of one batch after the other.

        The engine may take the next batch from `args` while one is in flight, and holds at most these two. A batch with
        an argument that is not valid is not created, and neither are later batches, nor a batch during which `args`
        raises.

        Raises:
            ValidationError: an argument is not valid, or an id or key occurs twice in a batch.
        """
        for batch in batches_of(args, MAX_BATCH_ITEMS, MAX_BATCH_BYTES):
            yield self.create_executions(batch)

    def create_in_transaction(
        self, connection: object, args: Sequence[CreateExecutionArgs]
    ) -> list[CreateExecutionResult | EngineError]:
        """Create executions in the caller's own transaction: they exist once the caller commits it, or never.

        The engine neither commits nor rolls back, and repeats nothing in the transaction.

        Args:
            connection: a `psycopg.Connection` to the database of the store, with the right to call its functions.
            args: what to run, where and when; each id and each idempotency key once.

        Returns:
            For each what `create_execution` returns, or the error.

        Raises:
            ValidationError: the store is not on Postgres, the connection or an argument is not valid, or
                `duplicate_in_call`; nothing was created.
            NotFoundError: `budget_not_found`, `quota_policy_not_found`; nothing was created.
            TransportError: a call in the transaction failed, and with it the transaction.
        """
        raise UnavailableError("create_in_transaction")


def batches_of(args: Iterable[CreateExecutionArgs], most: int, most_bytes: int) -> Iterator[list[CreateExecutionArgs]]:
    """Cut creations into batches of at most `most` creations with `most_bytes` of payload."""
    batch: list[CreateExecutionArgs] = []
    size = 0
    for each in args:
        # Leave it to the engine to refuse what is not a creation.
        payload = getattr(each, "payload", None)
        added = len(payload) if isinstance(payload, bytes) else 0
        if batch and size + added > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += added
        if len(batch) == most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
