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

        Signals to it are buffered until `suspend` takes it over or it expires. The lease continues.

        A waitpoint belongs to the execution: asked for again under its name, in any attempt, it is the same one with
        the same token, also when its suspension is over. One that expired, or closed because the execution ended, is
        opened again.

        Args:
            handle: the lease of the execution.
            waitpoint_key: the name that a condition will call it by; it stands once in an execution.
            expires_in: how long it may wait for its suspension, on the store's clock.
            shown: the document that is shown with it, at most 64 KiB; it is listed, and stays what it was at first.

        Returns:
            The waitpoint with its token.

        Raises:
            StateError: the lease is over.
            ConflictError: `document_mismatch`, the waitpoint shows another document.
            ResourceExhaustedError: `too_many_waitpoints`, 1,000 are open.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("create_waitpoint")

    def suspend(self, handle: Handle, args: SuspendArgs) -> SuspendOutcome:
        """Suspend the execution until its condition is met, and end the lease.

        The attempt timeout is paused during the suspension; the stream stays open.

        Args:
            handle: the lease of the execution.
            args: the condition, its waitpoints, and the timeout.

        Returns:
            Suspended, with the handle that takes the place of this one; or AlreadySatisfied, when signals
            buffered at pending waitpoints meet the condition: then the lease and its handle go on.

        Raises:
            ValidationError: `invalid_condition`, it can never be met or does not fit its waitpoints;
                `invalid_waitpoint_for_execution`, a pending waitpoint is another execution's.
            NotFoundError: `waitpoint_not_found`.
            StateError: `already_suspended`, the handle is a suspended one; `waitpoint_not_pending`, its wait is over;
                `pending_waitpoint_expired`; or the lease is over.
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
        """Read what the last suspension of the execution brought, until the next one. Changes nothing.

        Every attempt is told the same: also after a retry, a reclaim, a delay or a release.

        Args:
            handle: the resumed execution's; it is not fenced.
            cursor: the `next_cursor` of the page before; None for the first page.
            limit: signals of the page, 1 to 1,000.

        Returns:
            Why the execution was resumed, and a page of the signals that came; neither when it was never resumed.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_cursor`, `invalid_input`; `corruption`, a stored signal is damaged.
        """
        raise UnavailableError("observe_signals")

    def deliver_signal(self, args: DeliverSignalArgs) -> DeliverSignalResult:
        """Deliver a signal to a waitpoint, and resume the execution if that meets its condition.

        A pending waitpoint buffers it. However many signals race to be the last one, there is one resume. Of the
        signals of category `approval` to a waitpoint the first one stands.

        Args:
            args: the waitpoint, its token, and the signal.

        Returns:
            SignalAccepted, which says what the signal did, and what is waited for if it matched nothing; or
            SignalDuplicate with the id of the first signal under the same idempotency key or id, also after the resume.

        Raises:
            ValidationError: `invalid_token`, alike for a waitpoint that is unknown or foreign and for a token that is
                wrong or whose secret is past its grace; `signal_limit_exceeded`.
            NotFoundError: `execution_not_found`.
            StateError: `waitpoint_closed`, with why: resumed, already_satisfied, timed_out, cancelled, completed,
                failed or expired; or decided, of a second decision, with the first one and who made it.
        """
        raise UnavailableError("deliver_signal")

    def deliver_approval_signal(self, args: DeliverApprovalSignalArgs) -> DeliverSignalResult:
        """Deliver an operator's decision to a waitpoint without its token; otherwise as `deliver_signal`.

        Args:
            args: the waitpoint and the decision.

        Returns:
            SignalAccepted or SignalDuplicate.

        Raises:
            ValidationError: `lane_mismatch`, the execution lies in another lane; `signal_limit_exceeded`.
            NotFoundError: `execution_not_found`, `waitpoint_not_found`.
            StateError: `waitpoint_closed`, as in `deliver_signal`.
        """
        raise UnavailableError("deliver_approval_signal")

    def resume_execution(self, execution_id: ExecutionId, delay: timedelta = timedelta(0)) -> ResumeExecutionResult:
        """Resume a suspended execution whatever its condition says, for an operator.

        Args:
            execution_id: the execution.
            delay: until it is ready, on the store's clock.

        Returns:
            When it is ready.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_suspended`.
        """
        raise UnavailableError("resume_execution")

    def list_suspended(self, partition: int, cursor: str | None = None, limit: int = 100) -> ListSuspendedPage:
        """List a partition's suspended executions by the time of their suspension, then by id.

        Args:
            partition: the partition's number.
            cursor: the `next_cursor` of the page before; None for the first page.
            limit: most rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_partition_key`, `invalid_input`.
        """
        raise UnavailableError("list_suspended")

    def list_pending_waitpoints(
        self, execution_id: ExecutionId, cursor: str | None = None, limit: int = 100
    ) -> ListPendingWaitpointsPage:
        """List an execution's waitpoints that take signals, by id. Tokens are never shown.

        Args:
            execution_id: the execution.
            cursor: the `next_cursor` of the page before; None for the first page.
            limit: most rows of the page, 1 to 1,000.

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

        Tokens of the secret before it stay valid for the grace; a known secret can be promoted again.

        Args:
            args: the secret, its kid, and the grace.

        Returns:
            What became of each partition. One that failed holds its error, such as ConflictError
            `rotation_conflict` for a known kid with other bytes; the same call again converges the rest.
        """
        raise UnavailableError("rotate_waitpoint_hmac_secret_all")
