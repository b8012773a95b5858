"""The engine of `worker.eager()`, which runs submitted work on a store in memory before the submission returns."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final

import attrs

from flowfabric_worker._runtime.inline import INSTANCE, InlineRuntime
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_DURATION_MS
from flowfabric_worker.engine.moments import moment_of
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.flows import FlowGraph, SpawnResult, SubmitFlowResult
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.streams import StreamCursor, StreamFrames, TailVisibility
from flowfabric_worker.engine.types.submission import CreateExecutionArgs, CreateExecutionResult
from flowfabric_worker.engine.types.suspension import (
    DeliverApprovalSignalArgs,
    DeliverSignalArgs,
    DeliverSignalResult,
    ResumeExecutionResult,
)
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from flowfabric_worker.middleware import Around, Middleware
from flowfabric_worker.task import Task

# The most moves of the clock for one submission; work that needs more is taken to submit new work without end.
MOST_MOVES: Final = 1000
# The most handler runs without a move of the clock; work that needs more is taken to do the same.
MOST_RUNS: Final = 10_000
# The states of executions that continue by a signal or by the end of others.
_WAITING: Final = (PublicState.SUSPENDED, PublicState.WAITING_CHILDREN)
# Keep results for as long as possible, because tests read them after the clock has moved far ahead.
_RETENTION: Final = timedelta(milliseconds=MAX_DURATION_MS)


class EagerEngine(Engine):
    """Run every submission in the caller's thread until it has ended, or waits for a signal, before returning.

    The clock of the store follows real time, and jumps to the next moment that an execution waits for. The executions
    that a handler submits run after the handler, in the same thread. A thread that submits while another thread runs
    handlers leaves its work to that thread.

    Args:
        store: an engine on a new store that no other engine uses.
        tasks: the tasks that may run, by name.
        middleware: the middleware of the worker.
        capabilities: capabilities in addition to those that the tasks require.
    """

    def __init__(
        self,
        store: Engine,
        tasks: Mapping[str, Task[..., Any]],
        middleware: tuple[Middleware | Around, ...],
        capabilities: Collection[str],
    ) -> None:
        store.prepare(testing=True)
        super().__init__(lambda: (store.store, None), namespace=store.namespace, limits=store.limits)
        self._inline = InlineRuntime(self, self.limits, tasks, middleware, capabilities)
        self._tasks = tasks
        self._pending: set[ExecutionId] = set()
        # Those that wait for a signal or for other executions.
        self._held_back: set[ExecutionId] = set()
        self._running = False
        self._taking = threading.Lock()
        self._setting = threading.Lock()
        # At `_shown_at`, by this process's clock, the store's clock showed `_shown`; it has followed real time since.
        self._shown = moment_of(super().server_time())
        self._shown_at = monotonic()

    def create_execution(self, args: CreateExecutionArgs) -> CreateExecutionResult:
        self._follow_time()
        result = super().create_execution(_kept(args))
        self._run([result.execution_id])
        return result

    def create_executions(self, args: Sequence[CreateExecutionArgs]) -> list[CreateExecutionResult | EngineError]:
        self._follow_time()
        results = super().create_executions([_kept(each) for each in args])
        self._run(result.execution_id for result in results if not isinstance(result, EngineError))
        return results

    def create_in_batches(
        self, args: Iterable[CreateExecutionArgs]
    ) -> Iterator[list[CreateExecutionResult | EngineError]]:
        # Create one batch after the other, so that each has run before the next one.
        return EngineBackend.create_in_batches(self, args)

    def submit_flow(self, graph: FlowGraph) -> SubmitFlowResult:
        self._follow_time()
        nodes = [attrs.evolve(node, execution=_kept(node.execution)) for node in graph.nodes]
        result = super().submit_flow(attrs.evolve(graph, nodes=nodes))
        self._run(result.execution_ids.values())
        return result

    def spawn(self, handle: Handle, name: str, args: CreateExecutionArgs, detached: bool = False) -> SpawnResult:
        result = super().spawn(handle, name, _kept(args), detached)
        self._run([result.execution_id])
        return result

    def wait_for_result(self, execution_id: ExecutionId, timeout: timedelta | None = None) -> ExecutionOutcome:
        for _ in range(MOST_MOVES):
            if self.read_outcome(execution_id) is not None:
                break
            # A replay, or a signal from another engine, may have made the execution ready again.
            self._run([execution_id])
            info = self.read_execution_info(execution_id)
            if info is None or info.public_state not in _WAITING:
                break
            # Nothing else can happen while the caller waits.
            self.set_clock(self._end_of_wait([info, *self._unended(self._held_back)]))
        return super().wait_for_result(execution_id, timeout)

    def _end_of_wait(self, waiting: Sequence[ExecutionInfo]) -> datetime:
        """Return when the time of the first of several waiting executions is over.

        Raises:
            RuntimeError: they wait without a limit.
        """
        moments = [moment for info in waiting for moment in (info.suspended_until_ms, info.deadline_at_ms)]
        known = [moment for moment in moments if moment is not None]
        if not known:
            info = waiting[0]
            raise RuntimeError(
                f"{info.execution_id} of {info.task!r} has no result yet: {self._explain(info)} Answer it before you "
                "ask for its result."
            )
        return moment_of(max(self.server_time(), min(known)))

    def deliver_signal(self, args: DeliverSignalArgs) -> DeliverSignalResult:
        result = super().deliver_signal(args)
        self._run([args.execution_id])
        return result

    def deliver_approval_signal(self, args: DeliverApprovalSignalArgs) -> DeliverSignalResult:
        result = super().deliver_approval_signal(args)
        self._run([args.execution_id])
        return result

    def resume_execution(self, execution_id: ExecutionId, delay: timedelta = timedelta(0)) -> ResumeExecutionResult:
        result = super().resume_execution(execution_id, delay)
        self._run([execution_id])
        return result

    def tail_stream(
        self,
        execution_id: ExecutionId,
        attempt_index: int,
        after: StreamCursor,
        block: timedelta,
        count_limit: int,
        visibility: TailVisibility = TailVisibility.ALL,
    ) -> StreamFrames:
        if block and self.read_outcome(execution_id) is None:
            # As in wait_for_result.
            self._run([execution_id])
        return super().tail_stream(execution_id, attempt_index, after, block, count_limit, visibility)

    def server_time(self) -> int:
        self._follow_time()
        return super().server_time()

    def set_clock(self, moment: datetime | None) -> None:
        with self._setting:
            self._shown, self._shown_at = moment or datetime.now(UTC), monotonic()
            super().set_clock(self._shown)

    def _follow_time(self) -> None:
        """Advance the clock by the real time that has passed since it was set."""
        with self._setting:
            super().set_clock(self._shown + timedelta(seconds=monotonic() - self._shown_at))

    # Running

    def _run(self, execution_ids: Iterable[ExecutionId]) -> None:
        """Run executions and those that they submit until all have ended, unless another thread is doing so already."""
        with self._taking:
            self._pending.update(execution_ids)
            if self._running:
                return
            self._running = True
        try:
            self._run_pending()
        except BaseException:
            with self._taking:
                # Forget the rest, so that the next submission does not fail because of this one.
                self._pending.clear()
                self._held_back.clear()
                self._running = False
            raise

    def _run_pending(self) -> None:
        moves = 0
        while True:
            with self._taking:
                tried = frozenset(self._pending)
            count = self._inline.run_until_idle(MOST_RUNS)
            with self._taking:
                infos = self._unended(self._pending | self._held_back)
                left = [info for info in infos if info.public_state not in _WAITING]
                self._pending = {info.execution_id for info in left}
                self._held_back = {info.execution_id for info in infos} - self._pending
                if not left:
                    self._running = False
                    return
            if count >= MOST_RUNS:
                raise self._given_up(
                    left,
                    f"{left[0].execution_id} of {left[0].task!r} has not ended after {count} runs of handlers at one "
                    "moment: a task that keeps submitting itself, or keeps failing, cannot run in eager().",
                )
            if not tried.issuperset(self._pending):
                # Claim again, because another thread may have added work after the last claim.
                continue
            if moves == MOST_MOVES:
                raise self._given_up(
                    left,
                    f"{left[0].execution_id} of {left[0].task!r} has not ended after {moves} moves of the clock: "
                    "a task that keeps submitting itself, or keeps failing, cannot run in eager().",
                )
            self.set_clock(min(self._next_moment(info, left) for info in left))
            moves += 1

    def _unended(self, execution_ids: Iterable[ExecutionId]) -> list[ExecutionInfo]:
        """Return those of some executions that have not ended."""
        infos = [self.read_execution_info(each) for each in execution_ids]
        return [info for info in infos if info is not None and not info.public_state.is_terminal]

    def _next_moment(self, info: ExecutionInfo, left: Iterable[ExecutionInfo]) -> datetime:
        """Return the next moment at which an execution that cannot run now changes.

        Raises:
            RuntimeError: there is no such moment; the message says why.
        """
        moments = [info.deadline_at_ms]
        if info.public_state is PublicState.DELAYED:
            moments.append(info.delay_until_ms)
        elif info.public_state is PublicState.ACTIVE and info.current_lease is not None:
            moments += [info.timeout_at_ms, info.current_lease.expires_at_ms]
        known = [moment for moment in moments if moment is not None]
        if info.public_state is PublicState.WAITING or not known:
            why = self._explain(info)
            raise self._given_up(left, f"{info.execution_id} of {info.task!r} cannot end in eager(): {why}")
        # Never return the past: the clock follows real time, and may have passed that moment already.
        return moment_of(max(self.server_time(), min(known)))

    def _given_up(self, left: Iterable[ExecutionInfo], why: str) -> RuntimeError:
        """Cancel executions that do not end, so that no later submission runs them; return the error to raise."""
        for info in left:
            self.cancel_execution(CancelExecutionArgs(execution_id=info.execution_id, reason=why))
        return RuntimeError(why)

    def _explain(self, info: ExecutionInfo) -> str:
        """Explain why an execution does not run, with this engine as the only worker."""
        self.register_worker(
            RegisterWorkerArgs(
                worker_id=INSTANCE,
                worker_instance_id=INSTANCE,
                lanes=(info.lane,),
                capabilities=tuple(self._inline.capabilities),
                tasks=tuple(self._tasks),
            )
        )
        explanation = self.explain_execution(info.execution_id)
        return "it was removed." if explanation is None else explanation.text


def _kept(args: CreateExecutionArgs) -> CreateExecutionArgs:
    """Return a submission with the longest retention, unless it has its own."""
    if args.policy.retention is not None:
        return args
    return attrs.evolve(args, policy=attrs.evolve(args.policy, retention=_RETENTION))
