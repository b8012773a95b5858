"""The operations of the area suspension, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.suspension import (
    AlreadySatisfied,
    DeliverApprovalSignalArgs,
    DeliverSignalArgs,
    DeliverSignalResult,
    ListPendingWaitpointsPage,
    ListSuspendedPage,
    ObservedSignals,
    PendingWaitpoint,
    ResumeExecutionResult,
    SuspendArgs,
    SuspendOutcome,
)
from flowfabric_worker.engine.types.waitpoint_secrets import (
    RotateWaitpointHmacSecretAllArgs,
    RotateWaitpointHmacSecretAllResult,
)


class SuspensionBackend:
    """Suspend executions, and resume them by signals."""

    def create_waitpoint(
        self, handle: Handle, waitpoint_key: str, expires_in: timedelta, shown: bytes | None = None
    ) -> PendingWaitpoint:
        """Create a waitpoint before its suspension, so that its token can be handed out first.

        Signals to the waitpoint are buffered until `suspend` uses it, or it expires. The lease continues.

        A waitpoint belongs to the execution: a later call with the same name, in any attempt, returns the same
        waitpoint with the same token, even after its suspension. A waitpoint that expired, or was closed because the
        execution ended, is opened again.

        Args:
            handle: the lease of the execution.
            waitpoint_key: the name of the waitpoint in conditions, which is unique in the execution.
            expires_in: how long the waitpoint may wait for its suspension, by the store's clock.
            shown: the document that is shown with the waitpoint, at most 64 KiB; the first one is kept.

        Returns:
            The waitpoint with its token.

        Raises:
            StateError: the lease has ended.
            ConflictError: `document_mismatch`, the waitpoint shows another document.
            ResourceExhaustedError: `too_many_waitpoints`, 1,000 are open.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("create_waitpoint")

    def suspend(self, handle: Handle, args: SuspendArgs) -> SuspendOutcome:
        """Suspend an execution until a condition is met, and end its lease.

        The timeout of the attempt is paused during the suspension, and the stream stays open.

        Args:
            handle: the lease of the execution.
            args: the condition, its waitpoints, and the timeout.

        Returns:
            `Suspended`, with the handle that replaces this one; or `AlreadySatisfied`, if signals that are buffered at
            pending waitpoints meet the condition: then the lease and its handle stay valid.

        Raises:
            ValidationError: `invalid_condition`, the condition can never be met or does not match its waitpoints;
                `invalid_waitpoint_for_execution`, a pending waitpoint belongs to another execution.
            NotFoundError: `waitpoint_not_found`.
            StateError: `already_suspended`, the handle is a suspended one; `waitpoint_not_pending`, its wait is over;
                `pending_waitpoint_expired`; or the lease has ended.
            ConflictError: `document_mismatch`, a waitpoint shows another document.
            ResourceExhaustedError: `too_many_waitpoints`, 1,000 are open.
        """
        raise UnavailableError("suspend")

    def try_satisfy(self, handle: Handle, args: SuspendArgs) -> AlreadySatisfied | None:
        """Check a suspension before the worker leaves the handler, and end its wait if signals are there already.

        The lease continues in either case. If signals buffered at pending waitpoints meet the condition, they are taken
        as `suspend` takes them; otherwise nothing changes, and `suspend` with the same arguments is the next call.

        Args:
            handle: the lease of the execution.
            args: the condition, its waitpoints, and the timeout.

        Returns:
            AlreadySatisfied, or None if the condition is not met.

        Raises:
            ValidationError, NotFoundError, StateError, ConflictError, ResourceExhaustedError: as in `suspend`.
        """
        raise UnavailableError("try_satisfy")

    def observe_signals(self, handle: Handle, cursor: str | None = None, limit: int = 100) -> ObservedSignals:
        """Read how the last suspension of an execution ended, and its signals; change nothing.

        Every attempt gets the same answer until the next suspension, also after a retry, a reclaim, a delay or a
        release.

        Args:
            handle: the lease of the resumed execution, which is not checked.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most signals of the page, 1 to 1,000.

        Returns:
            Why the execution was resumed, and a page of its signals; neither if it was never resumed.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_cursor`, `invalid_input`; `corruption`, a stored signal is damaged.
        """
        raise UnavailableError("observe_signals")

    def deliver_signal(self, args: DeliverSignalArgs) -> DeliverSignalResult:
        """Deliver a signal to a waitpoint, and resume the execution if that meets its condition.

        A pending waitpoint buffers the signal. The execution is resumed once, even if many signals race to be the last
        one. The first signal of the category `approval` at a waitpoint is the decision.

        Args:
            args: the waitpoint, its token, and the signal.

        Returns:
            `SignalAccepted`, with the effect of the signal and, if it matched nothing, the awaited names; or
            `SignalDuplicate`, with the id of the first signal with the same idempotency key or id, also after the
            resume.

        Raises:
            ValidationError: `invalid_token`, the waitpoint is unknown or belongs to another execution, or the token is
                wrong or its secret is past its grace; `signal_limit_exceeded`.
            NotFoundError: `execution_not_found`.
            StateError: `waitpoint_closed`, with the reason: resumed, already_satisfied, timed_out, cancelled,
                completed, failed or expired; for a second decision, decided, with the first one and who made it;
                `written_by_newer_release`, only a newer release knows the condition or the time-out.
        """
        raise UnavailableError("deliver_signal")

    def deliver_approval_signal(self, args: DeliverApprovalSignalArgs) -> DeliverSignalResult:
        """Deliver an operator's decision to a waitpoint without its token; otherwise the same as `deliver_signal`.

        Args:
            args: the waitpoint and the decision.

        Returns:
            SignalAccepted or SignalDuplicate.

        Raises:
            ValidationError: `lane_mismatch`, the execution is in another lane; `signal_limit_exceeded`.
            NotFoundError: `execution_not_found`, `waitpoint_not_found`.
            StateError: `waitpoint_closed`, `written_by_newer_release`, as in `deliver_signal`.
        """
        raise UnavailableError("deliver_approval_signal")

    def resume_execution(self, execution_id: ExecutionId, delay: timedelta = timedelta(0)) -> ResumeExecutionResult:
        """Resume a suspended execution on behalf of an operator, whether or not its condition is met.

        Args:
            execution_id: the execution.
            delay: how long until the execution is ready, by the store's clock.

        Returns:
            When the execution is ready.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_suspended`.
        """
        raise UnavailableError("resume_execution")

    def list_suspended(self, partition: int, cursor: str | None = None, limit: int = 100) -> ListSuspendedPage:
        """List the suspended executions of a partition by the time of their suspension, then by id.

        Args:
            partition: the number of the partition.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_partition_key`, `invalid_input`.
        """
        raise UnavailableError("list_suspended")

    def list_pending_waitpoints(
        self, execution_id: ExecutionId, cursor: str | None = None, limit: int = 100
    ) -> ListPendingWaitpointsPage:
        """List the waitpoints of an execution that accept signals, by id; tokens are never shown.

        Args:
            execution_id: the execution.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_pending_waitpoints")

    def rotate_waitpoint_hmac_secret_all(
        self, args: RotateWaitpointHmacSecretAllArgs
    ) -> RotateWaitpointHmacSecretAllResult:
        """Sign waitpoint tokens with another secret from now on, in every partition.

        Tokens of the former secret stay valid for the grace; a known secret can be used again.

        Args:
            args: the secret, its kid, and the grace of the former secret.

        Returns:
            The result of each partition, which may be its error, such as ConflictError
            `rotation_conflict` for a known kid with other bytes; repeat the call to rotate the rest.
        """
        raise UnavailableError("rotate_waitpoint_hmac_secret_all")
