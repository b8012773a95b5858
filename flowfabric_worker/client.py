"""`Client`: submits and watches executions of tasks whose code is not installed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property, partial
from time import monotonic
from typing import Any, Final, Self, TypeAlias

import attrs

from flowfabric_worker._tasks.budget_calls import BudgetCalls
from flowfabric_worker._tasks.options import TaskOptions, published_options
from flowfabric_worker._tasks.published import find_task, full_name, placeholder_function, unknown_task
from flowfabric_worker._tasks.quota_calls import QuotaCalls
from flowfabric_worker.codec import Codec
from flowfabric_worker.config import store_url
from flowfabric_worker.engine.connection import DEFAULT_RETRY_FOR
from flowfabric_worker.engine.ids import ExecutionId, FlowId
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE, Limits
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter
from flowfabric_worker.engine.types.flows import FlowSummary
from flowfabric_worker.engine.types.reads import (
    ExecutionFilter,
    ExecutionInfo,
    Explanation,
    LaneInfo,
)
from flowfabric_worker.engine.types.schedules import ScheduleInfo
from flowfabric_worker.engine.types.suspension import DeliverSignalResult
from flowfabric_worker.engine.types.workers import TaskInfo, WorkerInfo
from flowfabric_worker.flow import Flow, FlowRun, Node, reopen
from flowfabric_worker.listing import Listing, rows_of
from flowfabric_worker.run import Run
from flowfabric_worker.signals import send_decision, send_signal
from flowfabric_worker.stream import RunStream, RunSummary
from flowfabric_worker.task import Arguments, Task, call_of

# Seconds for which the published options of a task are cached.
_CACHED_FOR: Final = 10.0
_MOST_CACHED: Final = 1000

Id: TypeAlias = ExecutionId | str
"""An execution's id, or its text."""

Runs: TypeAlias = list[Run[Any]]


class Client(QuotaCalls, BudgetCalls):
    """Submit, watch and operate executions by the names of their tasks, without the code of the tasks.

    The client reads the options of a task (lane, retries, timeout ...) from the store, where its worker publishes them.
    Arguments and results are plain values; a worker checks that a call matches the task's signature when it starts the
    execution. The client connects at its first call, and threads may share it.

    Args:
        url: the URL of the store; None for `$FLOWFABRIC_URL`, else `embedded://.flowfabric`.
        namespace: the tenant whose executions the client sees.
        codec: how arguments are encoded: "json", "msgpack", or an object with the members of `Codec`; None for msgpack
            if the task uses it, else JSON, which every worker reads.
        limits: the sizes that an operator allows.
        retry_for: seconds for which a call is sent again after a failure of the connection; 0 to send it once.

    Attributes:
        name: the name of the client in messages.
        engine: the engine on the client's store.

    Raises:
        ValidationError: the namespace is not valid. An invalid URL is refused at the first call.
    """

    name = "client"

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        codec: str | Codec | None = None,
        limits: Limits | None = None,
        retry_for: float = DEFAULT_RETRY_FOR,
    ) -> None:
        self.url = store_url(url)
        self.namespace = namespace
        # Import the engine here, because a program that only decorates its tasks opens none.
        from flowfabric_worker.engine.engine import open_engine

        self.engine = open_engine(self.url, namespace=namespace, limits=limits, retry_for=retry_for)
        self._codec = codec
        self._tasks: dict[str, tuple[Task[..., Any], float]] = {}

    def __reduce__(self) -> tuple[Callable[..., Client], tuple[str]]:
        make = partial(
            Client,
            namespace=self.namespace,
            codec=self._codec,
            limits=self.engine.limits,
            retry_for=self.engine.retry_for,
        )
        return make, (self.url,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the store."""
        self.engine.close()

    # For producers

    def submit(
        self,
        task: str,
        args: Arguments = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
        **options: Any,
    ) -> Run[Any]:
        """Submit a durable execution of a task.

        Args:
            task: the task's name, such as `shop.send_receipt`; `send_receipt` suffices if only one task has that name.
            args: the positional arguments, or a mapping with all arguments by name.
            kwargs: keyword arguments, in addition to the positional ones.
            force: submit under exactly this name, with the default options, even if no worker has published it.
            options: options of `TaskOptions`, except those that belong to the task: lease, codec, permanent ... An
                option that is not given has the value that the task's worker published. And `connection`: a psycopg
                connection to the database of a `postgresql://` store, whose transaction the execution joins.

        Raises:
            TypeError: an option is unknown.
            EncodingError: an argument is not a plain value.
            NotFoundError: `task_not_found`, no worker has published a task of that name in the last week.
            ValidationError: `ambiguous_task`, several tasks have that bare name.
            EngineError: the store refused the call, or cannot be reached.
        """
        call = call_of(args, kwargs)
        return self._published(task, force).options(**options).submit(*call.args, **call.kwargs)

    def submit_many(self, task: str, calls: Iterable[Arguments], *, force: bool = False, **options: Any) -> Runs:
        """Submit a durable execution of each call in bounded batches, and return the runs in order. See `submit`."""
        return self._published(task, force).options(**options).submit_many(call_of(each) for each in calls)

    def flow(self, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Flow:
        """Return a flow without nodes; `node(...)` adds them inside `with client.flow(name) as flow:`.

        Args:
            name: the name of the flow, for operators.
            key: an idempotency key: the same graph under the same key is submitted once.
            tags: names and values to find the flow by.

        Raises:
            ValidationError: an argument is not valid.
        """
        return Flow(self, name, key=key, tags=tags)

    def node(
        self,
        task: str,
        args: Arguments = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
        **options: Any,
    ) -> Node[Any]:
        """Add a task to the flow of the `with` block, and return its node. See `submit` and `Task.node`.

        The parameters of the task are not known here: an argument that is a list of nodes is a list for it.
        """
        call = call_of(args, kwargs)
        return self._published(task, force).options(**options).node(*call.args, **call.kwargs)

    def run(self, execution_id: Id) -> Run[Any]:
        """Return the handle of an existing execution.

        Raises:
            ValidationError: `invalid_execution_id`.
        """
        return self._any_task.run(execution_id)

    def result(self, execution_id: Id, timeout: float | timedelta | None = None) -> Any:
        """Wait until an execution ends, and return its result as a plain value. See `Run.result`.

        Args:
            execution_id: the execution.
            timeout: seconds, or a timedelta; None to wait without a limit.

        Raises:
            ExecutionFailed, ExecutionCancelled, ExecutionExpired, ExecutionSkipped: the execution did not succeed.
            EngineTimeoutError: the execution did not end in time; it continues.
            NotFoundError: `execution_not_found`.
        """
        return self.run(execution_id).result(timeout)

    def stream(
        self, execution_id: Id, after: str | None = None, *, timeout: float | timedelta | None = None
    ) -> RunStream[Any]:
        """Return an iterator over the values that an execution emits, as plain values. See `Run.stream`."""
        return self.run(execution_id).stream(after, timeout=timeout)

    def summary(self, execution_id: Id, attempt: int | None = None) -> RunSummary | None:
        """Return the summary document of an attempt, by default the latest one. See `Run.summary`."""
        return self.run(execution_id).summary(attempt)

    def flow_run(self, flow_id: FlowId | str) -> FlowRun:
        """Return the handle of a submitted flow; its results are plain values. The store is asked at the first use."""
        return reopen(self, FlowId(str(flow_id)), self._any_task)

    # For those who answer

    def signal(
        self, token: str, name: str, payload: Any = None, *, by: str = "unknown", key: str | None = None
    ) -> DeliverSignalResult:
        """Send a signal to the waitpoint of a token, which resumes the execution that waits for it.

        Args:
            token: what `current().waitpoint(...)` returned.
            name: the name that the execution waits for.
            payload: any value that `wait_for` can decode: plain, or of a class with annotations. At most 64 KiB.
            by: who sends the signal; it is kept with the signal.
            key: an idempotency key: a second signal under the same key is the same signal.

        Returns:
            `SignalAccepted`, whose `effect` is `no_op` if the signal matched nothing, and whose `awaited_names` then
            are the names that the execution waits for; `SignalDuplicate` for a signal that came before.

        Raises:
            EncodingError: the payload would not come back equal.
            ValidationError: `invalid_token`, `payload_too_large`, `signal_limit_exceeded`.
            NotFoundError: `execution_not_found`.
            StateError: `waitpoint_closed`, with why.
        """
        return send_signal(self.engine, token, name, payload, by, key)

    def approve(
        self, token: Id, approved: bool, *, by: str, reason: str = "", waitpoint: str | None = None
    ) -> DeliverSignalResult:
        """Decide what an execution waits for; its handler gets an `Approval`. The first decision stands.

        Args:
            token: what `current().waitpoint(...)` returned; or, for an operator, the execution's id.
            approved: True to approve, False to reject.
            by: who decides.
            reason: a text for the handler.
            waitpoint: the name of the waitpoint, for an execution that takes signals at several.

        Returns:
            `SignalAccepted`; or `SignalDuplicate` if the same operator has made the same decision before.

        Raises:
            ValidationError: `invalid_input`, `approved` is neither True nor False; `invalid_token`;
                `ambiguous_waitpoint`, the execution takes signals at several waitpoints, which the message lists.
            NotFoundError: `execution_not_found`, `waitpoint_not_found`.
            StateError: `waitpoint_closed`, with why; or decided, with the decision that stands and who made it.
        """
        return send_decision(self.engine, token, approved, by, reason, waitpoint)

    # For watchers

    def get(self, execution_id: Id) -> ExecutionInfo | None:
        """Return everything about an execution except its arguments and result; None if it does not exist."""
        return self.engine.read_execution_info(_identity(execution_id))

    def explain(self, execution_id: Id) -> Explanation | None:
        """Explain in words why an execution is not running; return None if it does not exist."""
        return self.engine.explain_execution(_identity(execution_id))

    def list(
        self,
        *,
        lane: str | None = None,
        state: str | None = None,
        task: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Listing:
        """List the executions that match every filter, oldest first; pages are read as the caller iterates.

        Lanes, and all states except `waiting` and `completed`, are indexed. For other filters the store looks at every
        execution that matches the indexed ones; `looked_at` of the returned listing counts them.

        Raises:
            ValidationError: no public state has that name; `ambiguous_task`, several tasks have that bare name.
        """
        named = None if task is None else full_name(self.engine, task)
        chosen = ExecutionFilter(lane=lane, state=state, task=named, tags=tags or {})
        return Listing(lambda cursor: self.engine.list_executions(None, cursor, MAX_PAGE_SIZE, chosen))

    def tasks(self) -> Iterator[TaskInfo | DamagedRow]:
        """Yield the tasks that workers have published in the last week, with their options."""

        def read(cursor: str | None) -> tuple[Sequence[TaskInfo | DamagedRow], str | None]:
            page = self.engine.list_tasks(cursor, MAX_PAGE_SIZE)
            return page.tasks, page.next_cursor

        return rows_of(read)

    def lanes(self) -> Iterator[LaneInfo]:
        """Yield the lanes in the order of their names, with the number of executions per state."""

        def read(cursor: str | None) -> tuple[Sequence[LaneInfo], str | None]:
            page = self.engine.list_lanes(cursor, MAX_PAGE_SIZE)
            return page.lanes, page.next_cursor

        return rows_of(read)

    def workers(self) -> Iterator[WorkerInfo | DamagedRow]:
        """Yield the workers in the order of their instance ids; dead workers are listed for a day."""

        def read(cursor: str | None) -> tuple[Sequence[WorkerInfo | DamagedRow], str | None]:
            page = self.engine.list_workers(cursor, MAX_PAGE_SIZE)
            return page.workers, page.next_cursor

        return rows_of(read)

    def schedules(self) -> Iterator[ScheduleInfo | DamagedRow]:
        """Yield the schedules in the order of their names, with their last and next ticks."""

        def read(cursor: str | None) -> tuple[Sequence[ScheduleInfo | DamagedRow], str | None]:
            page = self.engine.list_schedules(cursor, MAX_PAGE_SIZE)
            return page.schedules, page.next_cursor

        return rows_of(read)

    def flows(self) -> Iterator[FlowSummary | DamagedRow]:
        """Yield the flows, partition by partition, in the order of their ids."""
        for number in range(self.engine.partitions):
            yield from rows_of(partial(self._flows_page, number))

    def _flows_page(self, partition: int, cursor: str | None) -> tuple[Sequence[FlowSummary | DamagedRow], str | None]:
        page = self.engine.list_flows(partition, cursor, MAX_PAGE_SIZE)
        return page.flows, page.next_cursor

    def completions(
        self,
        cursor: str | None = None,
        filter: CompletionFilter | None = None,  # noqa: A002  the engine's operation has the same parameter
        timeout: timedelta | None = None,
    ) -> Iterator[CompletionEvent]:
        """Yield the end of every execution after a cursor, including ends that are still to come.

        See `EngineBackend.subscribe_completions` for the arguments.
        """
        if filter is not None and check_record(filter, CompletionFilter).tasks:
            filter = attrs.evolve(filter, tasks={full_name(self.engine, task) for task in filter.tasks})  # noqa: A001  as above
        return self.engine.subscribe_completions(cursor, filter, timeout)

    # For operators

    def cancel(self, execution_id: Id, reason: str = "") -> None:
        """End an execution as cancelled, in whatever state it is.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_active`, the execution has already ended in another way.
        """
        self.engine.cancel_execution(CancelExecutionArgs(execution_id=_identity(execution_id), reason=reason))

    def replay(self, execution_id: Id, *, steps: str = "keep", from_step: str | None = None) -> None:
        """Run an ended execution again.

        Args:
            execution_id: the execution.
            steps: "keep" what its steps and waits brought, or "forget" it.
            from_step: a step or a wait: keep what was recorded before it, and forget it and all that came after.

        Raises:
            NotFoundError: `execution_not_found`, `step_not_found`.
            StateError: `execution_not_terminal`, `max_replays_exhausted`.
            ValidationError: `steps` is another word, or both are given.
        """
        self.run(execution_id).replay(steps=steps, from_step=from_step)

    def pause_lane(self, lane: str) -> bool:
        """Stop handing out work of a lane, and keep that work; return False if the lane was already paused."""
        return self.engine.pause_lane(lane)

    def resume_lane(self, lane: str) -> bool:
        """Hand out work of a paused lane again; return False if the lane was not paused."""
        return self.engine.resume_lane(lane)

    def pause_schedule(self, name: str) -> bool:
        """Stop a schedule from submitting; ticks during the pause are skipped. Return False if it was already paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        return self.engine.pause_schedule(name)

    def resume_schedule(self, name: str) -> bool:
        """Let a paused schedule submit again from now on; return False if it was not paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        return self.engine.resume_schedule(name)

    def remove_schedule(self, name: str) -> None:
        """Remove a schedule that no code declares any more; a worker that still declares it registers it again.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        self.engine.remove_schedule(name)

    def _published(self, name: str, force: bool) -> Task[..., Any]:
        """Return the task of that name, with the options that its worker has published."""
        task, cached_until = self._tasks.get(name, (None, 0.0))
        if task is not None and monotonic() < cached_until:
            return task
        found = find_task(self.engine, name)
        if found is None:
            if force:
                return self._task(name, TaskOptions(), "json")
            raise unknown_task(self.engine, name, self.namespace)
        task = self._task(found.name, published_options(found), "msgpack" if found.codec == "msgpack" else "json")
        if len(self._tasks) >= _MOST_CACHED:
            self._tasks.clear()
        self._tasks[name] = task, monotonic() + _CACHED_FOR
        return task

    @cached_property
    def _any_task(self) -> Task[..., Any]:
        return self._task("execution", TaskOptions(), "json")

    def _task(self, name: str, options: TaskOptions, codec: str) -> Task[..., Any]:
        """Return a task with that name and without code, which takes any plain arguments."""
        return Task(placeholder_function(name), self, name, options, self._codec or codec)


def _identity(execution_id: Id) -> ExecutionId:
    return ExecutionId.parse(execution_id) if isinstance(execution_id, str) else execution_id
