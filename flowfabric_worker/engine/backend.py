"""The engine's face: every operation with its promise.

Every operation is one atomic step: it happens whole or not at all, and a refused call leaves no trace. Every
operation may be sent again after a lost reply and gives the same answer. The store's clock alone decides about time.
Every operation may raise `TransportError`; the docstrings name what else is to be expected.
"""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from flowfabric_worker.engine.coordination import CoordinationBackend
from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.housekeeping import HousekeepingBackend
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.registry import RegistryBackend
from flowfabric_worker.engine.types.claiming import (
    Claimed,
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimPolicy,
    ClaimRequest,
    ClaimResumedExecutionArgs,
    ReclaimToken,
)
from flowfabric_worker.engine.types.damage import ListDamagedPage
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter, ExecutionOutcome
from flowfabric_worker.engine.types.operating import (
    CancelExecutionArgs,
    CancelExecutionResult,
    ChangePriorityArgs,
    ChangePriorityResult,
    ReplayExecutionArgs,
    ReplayExecutionResult,
    RevokeLeaseArgs,
    RevokeLeaseResult,
)
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.reads import (
    ExecutionFilter,
    ExecutionInfo,
    ExecutionSnapshot,
    Explanation,
    ListExecutionsPage,
    ListExpiredLeasesPage,
    ListLanesPage,
)
from flowfabric_worker.engine.types.running import (
    Completion,
    FailOutcome,
    Failure,
    FailureReason,
    LeaseRenewal,
    StepRecord,
    TerminalFailed,
)
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import CreateExecutionArgs, CreateExecutionResult
from flowfabric_worker.engine.types.upkeep import BackendCapabilities


class EngineBackend(CoordinationBackend, HousekeepingBackend, RegistryBackend):
    """What an engine offers; bring your own by overriding. What is not overridden raises `UnavailableError`.

    Operations that take a handle check in this order: the execution exists (`execution_not_found`), the call is no
    repeat of the one that ended this lease, the execution is active (`execution_not_active`, with its outcome), the
    lease is not revoked (`lease_revoked`), has not run out (`lease_expired`) and is the one that holds the execution
    (`stale_lease`). Operations on many items answer each by itself: an error takes the place of a result.
    """

    # ── submission ──

    def create_execution(self, args: CreateExecutionArgs) -> CreateExecutionResult:
        """Makes an execution, or answers with the one that exists under its id or idempotency key.

        Raises:
            ValidationError: an argument is not valid; the message names it.
            ResourceExhaustedError: `too_many_classes`, `store_full`.
        """
        raise UnavailableError("create_execution")

    def create_executions(self, args: Sequence[CreateExecutionArgs]) -> list[CreateExecutionResult | EngineError]:
        """Makes many executions, each by itself, in one round trip for 500 of a partition.

        Raises:
            ValidationError: an argument is not valid, or an id or key stands twice; then nothing was made.
        """
        raise UnavailableError("create_executions")

    # ── claiming ──

    def claim(self, lane: str, capabilities: frozenset[str], policy: ClaimPolicy) -> Handle | None:
        """Claims the next execution of a lane; None when nothing is ready."""
        raise UnavailableError("claim")

    def claim_many(self, request: ClaimRequest) -> list[Claimed]:
        """Claims everything that is ready, up to a limit: new, retried, replayed and resumed work, and work whose
        lease was lost. With `max_wait` it blocks until there is something, without polling.
        """
        raise UnavailableError("claim_many")

    def pass_wake(self, request: ClaimRequest) -> None:
        """Wakes another waiter for each class of the request that holds work: this worker has no room for it."""
        raise UnavailableError("pass_wake")

    def stop_waiting(self, worker_instance_id: str) -> None:
        """Ends the waiting of a worker that goes."""
        raise UnavailableError("stop_waiting")

    def claim_for_worker(self, args: ClaimForWorkerArgs) -> ClaimGrant | None:
        """Sets the next execution of a lane aside for a named worker, for a time; None when nothing is ready."""
        raise UnavailableError("claim_for_worker")

    def claim_resumed_execution(self, args: ClaimResumedExecutionArgs) -> Claimed:
        """Redeems a grant for an execution whose attempt was interrupted: the same attempt goes on.

        Raises:
            ContentionError: `execution_not_leaseable`, `not_a_resumed_execution`, `invalid_claim_grant`,
                `claim_grant_expired`.
        """
        raise UnavailableError("claim_resumed_execution")

    def claim_from_reclaim(self, token: ReclaimToken) -> Handle | None:
        """Redeems a grant for any kind of work; None when the execution cannot be claimed any more.

        Raises:
            ContentionError: `invalid_claim_grant`, `claim_grant_expired`.
        """
        raise UnavailableError("claim_from_reclaim")

    # ── running ──

    def renew(self, handle: Handle) -> LeaseRenewal:
        """Makes a lease hold for its full time again, from now. A lease that ran out stays lost."""
        raise UnavailableError("renew")

    def renew_many(self, handles: Sequence[Handle]) -> list[LeaseRenewal | EngineError]:
        """Renews many leases in one round trip."""
        raise UnavailableError("renew_many")

    def progress(self, handle: Handle, percent: int | None = None, message: str | None = None) -> None:
        """Says how far the work is: 0 to 100 percent, and a message. None keeps what was said before."""
        raise UnavailableError("progress")

    def complete(self, handle: Handle, payload: bytes | None = None) -> None:
        """Ends the execution with success and this result; None and `b""` differ.

        Raises:
            ValidationError: `payload_too_large`.
        """
        raise UnavailableError("complete")

    def complete_many(self, completions: Sequence[Completion]) -> list[EngineError | None]:
        """Completes many executions in one round trip."""
        raise UnavailableError("complete_many")

    def fail(
        self,
        handle: Handle,
        reason: FailureReason,
        classification: FailureClass,
        retry_after: timedelta | None = None,
    ) -> FailOutcome:
        """Ends the attempt as failed; the execution's policy decides whether it is tried again.

        Permanent failures are never retried, cancelled ones end the execution cancelled. `retry_after` takes the
        place of the policy's backoff.
        """
        raise UnavailableError("fail")

    def fail_many(self, failures: Sequence[Failure]) -> list[FailOutcome | EngineError]:
        """Fails many attempts in one round trip."""
        raise UnavailableError("fail_many")

    def cancel(self, handle: Handle, reason: str = "") -> None:
        """Ends the execution as cancelled by its holder."""
        raise UnavailableError("cancel")

    def release(self, handle: Handle, delay: timedelta | None = None) -> None:
        """Hands a claim back, ready at once or after a delay: same place, same attempt, no retry used."""
        raise UnavailableError("release")

    def release_many(
        self,
        handles: Sequence[Handle],
        delay: timedelta | None = None,
        *,
        if_wanted: bool = False,
        lost: str | None = None,
    ) -> list[bool | TerminalFailed | EngineError]:
        """Hand many claims back in one round trip.

        Args:
            if_wanted: only those that another worker waits for.
            lost: why the runs are lost, as in "killed by SIGKILL". They count as reclaims then: the attempt is over,
                the next claim begins another one, and an execution that was reclaimed too often ends failed.

        Returns:
            For each claim True if it was handed back; False if no worker waits for it, and the caller still holds it;
            `TerminalFailed` if that ended the execution.
        """
        raise UnavailableError("release_many")

    def delay(self, handle: Handle, delay_until: datetime | timedelta) -> None:
        """Parks the execution until a moment, or for a time; the same attempt goes on, no retry used."""
        raise UnavailableError("delay")

    def wait_children(self, handle: Handle) -> None:
        """Parks the execution until its children ended; ready at once when none is outstanding."""
        raise UnavailableError("wait_children")

    def record_step(self, handle: Handle, name: str, value: bytes) -> StepRecord:
        """Keeps a step's result for every later run of the execution; the first one under a name stands.

        Raises:
            ValidationError: `journal_full`, 1,000 steps or 1 MiB.
        """
        raise UnavailableError("record_step")

    # ── operating ──

    def cancel_execution(self, args: CancelExecutionArgs) -> CancelExecutionResult:
        """Ends an execution as cancelled, in any phase; of a cancelled one the same answer again.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_active`, it ended otherwise.
        """
        raise UnavailableError("cancel_execution")

    def change_priority(self, args: ChangePriorityArgs) -> ChangePriorityResult:
        """Changes the priority of an execution that waits to run, whatever it waits for.

        Raises:
            ContentionError: `execution_not_eligible`, it runs or has ended.
        """
        raise UnavailableError("change_priority")

    def replay_execution(self, args: ReplayExecutionArgs) -> ReplayExecutionResult:
        """Runs an ended execution again: a new attempt from a new place, retries counted anew, recorded steps kept.

        Raises:
            StateError: `execution_not_terminal`, `max_replays_exhausted`.
        """
        raise UnavailableError("replay_execution")

    def revoke_lease(self, args: RevokeLeaseArgs) -> RevokeLeaseResult:
        """Takes a lease away: the work is ready again, and its old holder gets `lease_revoked`.

        Raises:
            StateError: `execution_not_active`, `stale_lease` when another lease than the expected one holds it.
        """
        raise UnavailableError("revoke_lease")

    def pause_lane(self, lane: str) -> bool:
        """Makes a lane hand nothing out; it loses nothing. False if it was paused."""
        raise UnavailableError("pause_lane")

    def resume_lane(self, lane: str) -> bool:
        """Makes a paused lane hand work out again. False if it was not paused."""
        raise UnavailableError("resume_lane")

    def set_tags(self, execution_id: ExecutionId, tags: Mapping[str, str]) -> int:
        """Adds and replaces tags; returns how many the execution has now.

        Raises:
            ValidationError: `invalid_tag_key`, no tags, or more than 64 in all.
        """
        raise UnavailableError("set_tags")

    def purge(self, execution_id: ExecutionId) -> None:
        """Remove an ended execution with everything that it ever had, before its retention is over.

        A damaged execution is removed in any state.

        Raises:
            StateError: `execution_not_terminal`.
        """
        raise UnavailableError("purge")

    # ── workers: see also `registry` ──

    def list_expired_leases(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListExpiredLeasesPage:
        """A page of executions whose lease ran out or was revoked, and that nobody claimed since."""
        raise UnavailableError("list_expired_leases")

    # ── reads ──

    def describe_execution(self, execution_id: ExecutionId) -> ExecutionSnapshot | None:
        """An execution at this moment; None if there is none.

        Raises:
            ValidationError: `corruption`, the record is damaged; the message names the field.
        """
        raise UnavailableError("describe_execution")

    def read_execution_info(self, execution_id: ExecutionId) -> ExecutionInfo | None:
        """Everything about an execution but its payload and result; None if there is none.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("read_execution_info")

    def read_execution_state(self, execution_id: ExecutionId) -> PublicState | None:
        """An execution's public state; None if there is no such execution.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("read_execution_state")

    def get_execution_result(self, execution_id: ExecutionId) -> bytes | None:
        """The result of a completed execution; None if it has none, is not completed, or does not exist."""
        raise UnavailableError("get_execution_result")

    def list_executions(
        self,
        partition: str | None = None,
        cursor: ExecutionId | None = None,
        limit: int = 100,
        filter: ExecutionFilter | None = None,  # noqa: A002  the name that the operation has
    ) -> ListExecutionsPage:
        """A page of the namespace's executions by id, of one partition or of all, with filters.

        A call reads at most 10,000 records, so a page may be short and yet have a next one.
        """
        raise UnavailableError("list_executions")

    def list_damaged(
        self, partition: str | None = None, cursor: ExecutionId | None = None, limit: int = 100
    ) -> ListDamagedPage:
        """List a page of the executions whose records are damaged, by id, with what is wrong with each.

        A damaged execution is handed out no more and changes no more; at most 1,000 are listed per partition. `purge`
        removes it.
        """
        raise UnavailableError("list_damaged")

    def list_lanes(self, cursor: str | None = None, limit: int = 100) -> ListLanesPage:
        """A page of the namespace's lanes by name, with what each holds per public state."""
        raise UnavailableError("list_lanes")

    def explain_execution(self, execution_id: ExecutionId) -> Explanation | None:
        """Why an execution is not running, in words; None if there is no such execution."""
        raise UnavailableError("explain_execution")

    def ping(self) -> None:
        """Returns when the store answers."""
        raise UnavailableError("ping")

    def backend_label(self) -> str:
        """The kind of store, for logs and metrics."""
        return "unknown"

    def server_time(self) -> int:
        """The store's clock, in ms since 1970."""
        raise UnavailableError("server_time")

    def capabilities(self) -> BackendCapabilities:
        """Which operations this engine has a body for."""
        operations = [name for name in dir(EngineBackend) if not name.startswith("_")]
        own = {name for name in operations if getattr(type(self), name) is not getattr(EngineBackend, name)}
        return BackendCapabilities(
            label=self.backend_label(), operations=frozenset(own | {"capabilities", "backend_label"})
        )

    # ── feed ──

    def subscribe_completions(
        self,
        cursor: str | None = None,
        filter: CompletionFilter | None = None,  # noqa: A002  the name that the operation has
        timeout: timedelta | None = None,
    ) -> Iterator[CompletionEvent]:
        """Every end of an execution from a cursor on, in order per partition; blocks for new ones.

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
        """A cursor behind the newest end: a subscription from it sees only what is still to come."""
        raise UnavailableError("feed_cursor")

    def wait_for_result(self, execution_id: ExecutionId, timeout: timedelta | None = None) -> ExecutionOutcome:
        """Blocks, without polling, until an execution ends.

        Raises:
            NotFoundError: `execution_not_found`.
            EngineTimeoutError: it did not end in time; it goes on.
        """
        raise UnavailableError("wait_for_result")

    def read_outcome(self, execution_id: ExecutionId) -> ExecutionOutcome | None:
        """How an execution ended; None while it has not.

        Raises:
            NotFoundError: `execution_not_found`.
        """
        raise UnavailableError("read_outcome")
