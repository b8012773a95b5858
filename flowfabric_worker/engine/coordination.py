"""What executions share, first part: waiting for signals, streams of frames, and schedules."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from flowfabric_worker.engine.accounting import AccountingBackend
from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.flow_control import FlowControlBackend
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.schedules import (
    Leadership,
    ListSchedulesPage,
    TickScheduleArgs,
    TickScheduleResult,
)
from flowfabric_worker.engine.types.streams import (
    AppendFrameOutcome,
    Frame,
    StreamCursor,
    StreamFrames,
    SummaryDocument,
    TailVisibility,
)
from flowfabric_worker.engine.types.suspension import (
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


class CoordinationBackend(FlowControlBackend, AccountingBackend):
    """The operations of the rooms suspension, streams, schedules, flows, budgets and quotas.

    An operation that an engine does not override raises `UnavailableError` with its own name. Each is atomic,
    may be sent again after a lost reply, and may raise `TransportError`.

    What takes a handle is fenced by the handle's lease. Unless it says otherwise it raises NotFoundError
    `execution_not_found`, and when the lease is over StateError `execution_not_active`, `lease_revoked`,
    `lease_expired` or `stale_lease`.
    """

    # ── suspension ──

    def create_waitpoint(self, handle: Handle, waitpoint_key: str, expires_in: timedelta) -> PendingWaitpoint:
        """Makes a waitpoint ahead of its suspension, so that its token can be handed out first.

        Signals to it are buffered until `suspend` takes it over or it expires. The lease goes on.

        Args:
            handle: the execution's.
            waitpoint_key: the name that a condition will call it by.
            expires_in: how long it may wait for its suspension, on the store's clock.

        Returns:
            The waitpoint with its token.

        Raises:
            StateError: the lease is over.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("create_waitpoint")

    def suspend(self, handle: Handle, args: SuspendArgs) -> SuspendOutcome:
        """Suspends the execution until its condition is met, and ends the lease.

        The attempt timeout stands still meanwhile; the stream stays open.

        Args:
            handle: the execution's.
            args: the condition, its waitpoints, and the timeout.

        Returns:
            Suspended, with the handle that takes the place of this one; or AlreadySatisfied, when signals
            buffered at pending waitpoints meet the condition: then the lease and its handle go on.

        Raises:
            ValidationError: `invalid_condition`, it can never be met or does not fit its waitpoints;
                `invalid_waitpoint_for_execution`, a pending waitpoint is another execution's.
            NotFoundError: `waitpoint_not_found`.
            StateError: `already_suspended`, the handle is a suspended one; `waitpoint_not_pending`;
                `pending_waitpoint_expired`; or the lease is over.
        """
        raise UnavailableError("suspend")

    def observe_signals(self, handle: Handle) -> ObservedSignals:
        """Reads what the last suspension of this attempt brought, until the next one. Changes nothing.

        Args:
            handle: the resumed execution's; it is not fenced.

        Returns:
            Why it was resumed, and the signals that count; neither when this attempt was never resumed.

        Raises:
            NotFoundError: `execution_not_found`.
        """
        raise UnavailableError("observe_signals")

    def deliver_signal(self, args: DeliverSignalArgs) -> DeliverSignalResult:
        """Delivers a signal to a waitpoint, and resumes the execution if that meets its condition.

        A pending waitpoint buffers it. However many signals race to be the last one, there is one resume.

        Args:
            args: the waitpoint, its token, and the signal.

        Returns:
            SignalAccepted; or SignalDuplicate with the id of the first signal under the same idempotency key,
            also after the resume.

        Raises:
            ValidationError: `invalid_token`, alike for a waitpoint that is unknown, foreign or closed and for
                a token that is wrong or whose secret is past its grace; `signal_limit_exceeded`.
            NotFoundError: `execution_not_found`.
            StateError: `target_not_signalable`.
        """
        raise UnavailableError("deliver_signal")

    def deliver_approval_signal(self, args: DeliverApprovalSignalArgs) -> DeliverSignalResult:
        """Delivers an operator's decision to a waitpoint without its token; otherwise as `deliver_signal`.

        Args:
            args: the waitpoint and the decision.

        Returns:
            SignalAccepted or SignalDuplicate.

        Raises:
            ValidationError: `lane_mismatch`, the execution lies in another lane; `signal_limit_exceeded`.
            NotFoundError: `execution_not_found`, `waitpoint_not_found`.
            StateError: `target_not_signalable`.
        """
        raise UnavailableError("deliver_approval_signal")

    def resume_execution(self, execution_id: ExecutionId, delay: timedelta = timedelta(0)) -> ResumeExecutionResult:
        """Resumes a suspended execution whatever its condition says, for an operator.

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
        """Lists a partition's suspended executions by the time of their suspension, then by id.

        Args:
            partition: the partition's number.
            cursor: the page before's `next_cursor`; None begins.
            limit: rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_partition_key`, `invalid_input`.
        """
        raise UnavailableError("list_suspended")

    def list_pending_waitpoints(
        self, execution_id: ExecutionId, cursor: str | None = None, limit: int = 100
    ) -> ListPendingWaitpointsPage:
        """Lists an execution's waitpoints that take signals, by id. Tokens are never shown.

        Args:
            execution_id: the execution.
            cursor: the page before's `next_cursor`; None begins.
            limit: rows of the page, 1 to 1,000.

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
        """Signs waitpoint tokens with another secret from now on, in every partition.

        Tokens of the secret before it stay valid for the grace; a known secret can be promoted again.

        Args:
            args: the secret, its kid, and the grace.

        Returns:
            What became of each partition. One that failed holds its error, such as ConflictError
            `rotation_conflict` for a known kid with other bytes; the same call again converges the rest.
        """
        raise UnavailableError("rotate_waitpoint_hmac_secret_all")

    # ── streams ──

    def append_frame(self, handle: Handle, frame: Frame) -> AppendFrameOutcome:
        """Appends a frame to the stream of the execution's current attempt.

        Args:
            handle: the execution's.
            frame: the frame; with a `seq` it may be appended again without effect.

        Returns:
            The frame's id, and how many frames the attempt has appended.

        Raises:
            ValidationError: `invalid_patch`, a summary frame is no merge patch, or nests the document over
                16 deep.
            StateError: the lease is over.
        """
        raise UnavailableError("append_frame")

    def read_stream(
        self,
        execution_id: ExecutionId,
        attempt_index: int,
        from_cursor: StreamCursor,
        to_cursor: StreamCursor,
        count_limit: int,
    ) -> StreamFrames:
        """Reads a range of an attempt's stream; both ends belong to it.

        Args:
            execution_id: the execution; it need not exist any more.
            attempt_index: the attempt, counted from 0.
            from_cursor: the first place.
            to_cursor: the last place.
            count_limit: frames at most, 1 to 10,000.

        Returns:
            The frames, and whether the stream is closed. One that was never written is empty, and open while
            its attempt runs.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("read_stream")

    def tail_stream(
        self,
        execution_id: ExecutionId,
        attempt_index: int,
        after: StreamCursor,
        block: timedelta,
        count_limit: int,
        visibility: TailVisibility = TailVisibility.ALL,
    ) -> StreamFrames:
        """Waits for frames behind a place of an attempt's stream, or for its end.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.
            after: the frame behind which to begin; an id, `StreamCursor.from_beginning()` for all.
            block: how long to wait at most, up to 30 s; zero only looks.
            count_limit: frames at most, 1 to 10,000, counted after the visibility was applied.
            visibility: which frames are shown.

        Returns:
            The frames; none when the time is over first. Also once closed, more may lie behind the last one.

        Raises:
            ValidationError: `invalid_input`; `invalid_cursor`, `after` is `start` or `end`.
        """
        raise UnavailableError("tail_stream")

    def read_summary(self, execution_id: ExecutionId, attempt_index: int) -> SummaryDocument | None:
        """Reads an attempt's summary document.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.

        Returns:
            The document, or None when no summary frame was ever appended.
        """
        raise UnavailableError("read_summary")

    # ── schedules ──

    def tick_schedule(self, args: TickScheduleArgs) -> TickScheduleResult:
        """Submits ticks of a schedule: compares its last tick with the expected one, sets it, and makes what they make.

        The first call for an unknown schedule registers it and submits nothing, whatever it carries. A call without
        ticks asks how far the schedule is. Each call keeps what the schedule is now: spec, task, lane, next tick.

        Args:
            args: the schedule, what its ticks make, and which ones to submit.

        Returns:
            `Ticked` with the new executions; `Registered`; `AlreadyTicked` when the last tick is another one;
            `Paused`.

        Raises:
            ContentionError: `tick_not_due`, a tick lies in the future of the store's clock.
            ValidationError: an argument is not valid; the message names it.
            ResourceExhaustedError: `too_many_classes`, `store_full`.
        """
        raise UnavailableError("tick_schedule")

    def tick_schedules(self, args: Sequence[TickScheduleArgs]) -> list[TickScheduleResult | EngineError]:
        """Do what `tick_schedule` does for many schedules, in bounded calls; each is answered by itself, in order.

        Args:
            args: the schedules, each once.

        Returns:
            Of each what `tick_schedule` returns, or the error that it raises.

        Raises:
            ValidationError: `duplicate_in_call`; nothing was done.
        """
        raise UnavailableError("tick_schedules")

    def lead_schedules(self, group: str, process: str, duration: timedelta) -> Leadership:
        """Make a process the leader of a group of schedules, or renews its leadership; unless another one leads.

        Only spares the store calls: each tick is submitted once, whichever process submits it.

        Args:
            group: names the processes of which one leads.
            process: names the caller; never used again by another one.
            duration: for how long, unless it is renewed.

        Returns:
            Whether the caller leads, until when there is a leader, and the store's clock.

        Raises:
            ValidationError: an argument is not valid; the message names it.
        """
        raise UnavailableError("lead_schedules")

    def resign_schedules(self, group: str, process: str) -> None:
        """End the leadership of a process; change nothing if another one leads.

        Args:
            group: as in `lead_schedules`.
            process: as in `lead_schedules`.

        Raises:
            ValidationError: an argument is not valid; the message names it.
        """
        raise UnavailableError("resign_schedules")

    def list_schedules(self, cursor: str | None = None, limit: int = 100) -> ListSchedulesPage:
        """A page of the namespace's schedules by name.

        Args:
            cursor: the cursor of the page before; None for the first page.
            limit: most schedules on the page, 0 to 1000.

        Returns:
            The schedules, and the cursor of the next page; None at the end.

        Raises:
            ValidationError: `invalid_cursor`, or a limit out of range.
        """
        raise UnavailableError("list_schedules")

    def pause_schedule(self, name: str) -> bool:
        """Makes a schedule submit nothing.

        Args:
            name: the schedule's.

        Returns:
            False if it was paused already.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("pause_schedule")

    def resume_schedule(self, name: str) -> bool:
        """Lets a paused schedule go on from now; its ticks meanwhile are not made up for.

        Args:
            name: the schedule's.

        Returns:
            False if it was not paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("resume_schedule")

    def remove_schedule(self, name: str) -> None:
        """Forgets a schedule. A worker that still has it registers it anew, from that moment on.

        Args:
            name: the schedule's.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("remove_schedule")
