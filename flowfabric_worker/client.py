"""`Client`: submits and watches executions of tasks whose code is elsewhere."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property, partial
from time import monotonic
from typing import Any, Final, Self, TypeAlias, TypeVar

import attrs

from flowfabric_worker._tasks.options import TaskOptions, published_options
from flowfabric_worker.codec import Codec
from flowfabric_worker.config import store_url
from flowfabric_worker.engine.core import DEFAULT_RETRY_FOR
from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.errors import NotFoundError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE, Limits
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter
from flowfabric_worker.engine.types.reads import (
    ExecutionFilter,
    ExecutionInfo,
    ExecutionSummary,
    Explanation,
    LaneInfo,
    ListExecutionsPage,
)
from flowfabric_worker.engine.types.schedules import ScheduleInfo
from flowfabric_worker.engine.types.workers import TaskInfo, WorkerInfo
from flowfabric_worker.task import Call, Run, Task

# Seconds for which the options of a task are taken as they were read.
_FRESH_FOR: Final = 10.0
_MOST_REMEMBERED: Final = 1000
# An error names at most so many tasks.
_MOST_NAMED: Final = 10

T = TypeVar("T")
C = TypeVar("C")

Id: TypeAlias = ExecutionId | str
"""An execution's id, or its text."""

Arguments: TypeAlias = Call[...] | Sequence[Any] | Mapping[str, Any]
"""The arguments of one call: a sequence by place, a mapping by name, or a `Call` with both."""

Runs: TypeAlias = list[Run[Any]]


class Client:
    """What producers and operators need of a store: it knows tasks by their names alone.

    What a task's decorator says (lane, retries, timeout ...) is read from the store, where workers publish it.
    Arguments and results are plain values, as the codec has them; whether a call fits the task's signature shows
    when a worker takes it up. Nothing is connected before the first call. Safe to share between threads.

    Args:
        url: the store; None for `$FLOWFABRIC_URL`, else `embedded://.flowfabric`.
        namespace: the tenant whose executions it sees.
        codec: how arguments travel: "json", "msgpack", or an object with the members of `Codec`; None for msgpack
            where the task has it, else JSON, which every worker reads.
        limits: sizes that an operator allows.
        retry_for: seconds for which a call is sent again after a failure of the connection; 0 to send it once.

    Attributes:
        name: what the client calls itself in messages.
        engine: what it works with.

    Raises:
        ValidationError: the namespace is not valid. A wrong URL is told at the first call.
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
        self.engine = open_engine(self.url, namespace=namespace, limits=limits, retry_for=retry_for)
        self._codec = codec
        self._tasks: dict[str, tuple[Task[..., Any], float]] = {}

    def __reduce__(self) -> tuple[Callable[..., Client], tuple[str]]:
        again = partial(
            Client,
            namespace=self.namespace,
            codec=self._codec,
            limits=self.engine.limits,
            retry_for=self.engine.retry_for,
        )
        return again, (self.url,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the store."""
        self.engine.close()

    # Producing

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
            task: its name, such as `shop.send_receipt`; `send_receipt` where only one task ends in it.
            args: the arguments by place, or all of them by name as a mapping.
            kwargs: arguments by name, beside those by place.
            force: submit under this very name, with the default options, although no worker has published it.
            options: of `TaskOptions`, but those that belong to the task: lease, codec, permanent. What is not given
                is as the task's worker has published it.

        Raises:
            TypeError: an unknown option.
            EncodingError: an argument is not a plain value.
            NotFoundError: `task_not_found`, no worker has published a task of that name in the last week.
            ValidationError: `ambiguous_task`, several tasks end in that name.
            EngineError: the store refused it, or cannot be reached.
        """
        call = _call(args, kwargs)
        return self._published(task, force).options(**options).submit(*call.args, **call.kwargs)

    def submit_many(self, task: str, calls: Iterable[Arguments], *, force: bool = False, **options: Any) -> Runs:
        """Submit a durable execution of each call, in bounded batches; return the runs in order. See `submit`."""
        return self._published(task, force).options(**options).submit_many(_call(each) for each in calls)

    def run(self, execution_id: Id) -> Run[Any]:
        """Return the run of an execution that was submitted before.

        Raises:
            ValidationError: `invalid_execution_id`.
        """
        return self._any_task.run(execution_id)

    def result(self, execution_id: Id, timeout: float | timedelta | None = None) -> Any:
        """Return what an execution returned, as a plain value; blocks until it ends. See `Run.result`.

        Raises:
            ExecutionFailed, ExecutionCancelled, ExecutionExpired, ExecutionSkipped: it ended otherwise.
            EngineTimeoutError: it did not end in time; it goes on.
            NotFoundError: `execution_not_found`.
        """
        return self.run(execution_id).result(timeout)

    # Watching

    def get(self, execution_id: Id) -> ExecutionInfo | None:
        """Return everything about an execution but its arguments and result; None if there is none."""
        return self.engine.read_execution_info(_identity(execution_id))

    def explain(self, execution_id: Id) -> Explanation | None:
        """Why an execution is not running, in words; None if there is no such execution."""
        return self.engine.explain_execution(_identity(execution_id))

    def list(
        self,
        *,
        lane: str | None = None,
        state: str | None = None,
        task: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Listing:
        """List the executions that fit every filter, oldest first; page after page is read while it is iterated.

        A lane, and every state but `waiting` and `completed`, has an index. For other filters the store looks at every
        execution that fits the indexed ones: `looked_at` of what is returned counts them.

        Raises:
            ValidationError: no public state has that name; `ambiguous_task`, several tasks end in that name.
        """
        named = None if task is None else self._full_name(task)
        chosen = ExecutionFilter(lane=lane, state=state, task=named, tags=tags or {})
        return Listing(lambda cursor: self.engine.list_executions(None, cursor, MAX_PAGE_SIZE, chosen))

    def tasks(self) -> Iterator[TaskInfo | DamagedRow]:
        """Yield the tasks that workers have published in the last week, with their options."""

        def read(cursor: str | None) -> tuple[Sequence[TaskInfo | DamagedRow], str | None]:
            page = self.engine.list_tasks(cursor, MAX_PAGE_SIZE)
            return page.tasks, page.next_cursor

        return _rows(read)

    def lanes(self) -> Iterator[LaneInfo]:
        """Yield the lanes by name, with what each holds per state."""

        def read(cursor: str | None) -> tuple[Sequence[LaneInfo], str | None]:
            page = self.engine.list_lanes(cursor, MAX_PAGE_SIZE)
            return page.lanes, page.next_cursor

        return _rows(read)

    def workers(self) -> Iterator[WorkerInfo | DamagedRow]:
        """Yield the workers by instance id; dead ones are listed for a day."""

        def read(cursor: str | None) -> tuple[Sequence[WorkerInfo | DamagedRow], str | None]:
            page = self.engine.list_workers(cursor, MAX_PAGE_SIZE)
            return page.workers, page.next_cursor

        return _rows(read)

    def schedules(self) -> Iterator[ScheduleInfo | DamagedRow]:
        """Yield the schedules by name: when each ticks, and how far it is."""

        def read(cursor: str | None) -> tuple[Sequence[ScheduleInfo | DamagedRow], str | None]:
            page = self.engine.list_schedules(cursor, MAX_PAGE_SIZE)
            return page.schedules, page.next_cursor

        return _rows(read)

    def completions(
        self,
        cursor: str | None = None,
        filter: CompletionFilter | None = None,  # noqa: A002  the name that the engine's operation has
        timeout: timedelta | None = None,
    ) -> Iterator[CompletionEvent]:
        """Yield every end of an execution behind a cursor, and those to come; see
        `EngineBackend.subscribe_completions`.
        """
        if filter is not None and filter.tasks:
            filter = attrs.evolve(filter, tasks={self._full_name(task) for task in filter.tasks})  # noqa: A001  as above
        return self.engine.subscribe_completions(cursor, filter, timeout)

    # Operating

    def cancel(self, execution_id: Id, reason: str = "") -> None:
        """End an execution as cancelled, whatever it is doing.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_active`, it ended otherwise.
        """
        self.engine.cancel_execution(CancelExecutionArgs(execution_id=_identity(execution_id), reason=reason))

    def replay(self, execution_id: Id) -> None:
        """Run an ended execution again.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_terminal`, `max_replays_exhausted`.
        """
        self.engine.replay_execution(ReplayExecutionArgs(execution_id=_identity(execution_id)))

    def pause_lane(self, lane: str) -> bool:
        """Make a lane hand nothing out; it loses nothing. False if it was paused."""
        return self.engine.pause_lane(lane)

    def resume_lane(self, lane: str) -> bool:
        """Make a paused lane hand work out again. False if it was not paused."""
        return self.engine.resume_lane(lane)

    def pause_schedule(self, name: str) -> bool:
        """Make a schedule submit nothing; what it leaves out is not made up for. False if it was paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        return self.engine.pause_schedule(name)

    def resume_schedule(self, name: str) -> bool:
        """Let a paused schedule go on from now. False if it was not paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        return self.engine.resume_schedule(name)

    def remove_schedule(self, name: str) -> None:
        """Forget a schedule whose code is gone. A worker that still has it registers it anew.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        self.engine.remove_schedule(name)

    def _published(self, name: str, force: bool) -> Task[..., Any]:
        """Return the task of that name, with the options that its worker has published."""
        task, fresh_until = self._tasks.get(name, (None, 0.0))
        if task is not None and monotonic() < fresh_until:
            return task
        found = self._find(name)
        if found is None:
            if force:
                return self._task(name, TaskOptions(), "json")
            raise self._unknown(name)
        task = self._task(found.name, published_options(found), "msgpack" if found.codec == "msgpack" else "json")
        if len(self._tasks) >= _MOST_REMEMBERED:
            self._tasks.clear()
        self._tasks[name] = task, monotonic() + _FRESH_FOR
        return task

    def _find(self, name: str) -> TaskInfo | None:
        """Return the published task that a name means; None if there is none.

        Raises:
            ValidationError: `ambiguous_task`.
        """
        page = self.engine.list_tasks(limit=_MOST_NAMED + 1, name=name)
        found = [task for task in page.tasks if isinstance(task, TaskInfo)]
        if len(found) > 1:
            names = ", ".join(task.name for task in found[:_MOST_NAMED])
            raise ValidationError("ambiguous_task", f"{name!r} may be any of {names}: give the whole name.", task=name)
        return found[0] if found else None

    def _full_name(self, name: str) -> str:
        """Return the name of a task in the store; the given one where none is published that it means."""
        found = self._find(name)
        return name if found is None else found.name

    def _unknown(self, name: str) -> NotFoundError:
        page = self.engine.list_tasks(limit=MAX_PAGE_SIZE)
        names = [task.name for task in page.tasks if isinstance(task, TaskInfo)]
        ends = {full.rpartition(".")[2]: full for full in names}
        close = difflib.get_close_matches(name, [*names, *ends], n=1)
        hint = f" Did you mean {ends.get(close[0], close[0])!r}?" if close else ""
        return NotFoundError(
            "task_not_found",
            f"No worker has published a task {name!r} in the namespace {self.namespace!r}.{hint} Start its worker "
            "once, or submit with force=True (--force) all the same.",
            task=name,
        )

    @cached_property
    def _any_task(self) -> Task[..., Any]:
        return self._task("execution", TaskOptions(), "json")

    def _task(self, name: str, options: TaskOptions, codec: str) -> Task[..., Any]:
        """Return a task of that name which takes any plain arguments; its code is elsewhere."""
        return Task(_taking_anything(name), self, name, options, self._codec or codec)


def _taking_anything(name: str) -> Callable[..., Any]:
    def function(*arguments: Any, **named: Any) -> Any:
        raise NotImplementedError(f"The code of {name!r} is elsewhere: submit it.")

    function.__name__ = name
    return function


def _call(args: Arguments, kwargs: Mapping[str, Any] | None = None) -> Call[...]:
    if isinstance(args, Call):
        return args
    if isinstance(args, Mapping):
        return Call(**args, **(kwargs or {}))
    if isinstance(args, Sequence) and not isinstance(args, str | bytes):
        return Call(*args, **(kwargs or {}))
    raise TypeError(f"The arguments of a call are a sequence, a mapping or a Call(...), not {type(args).__name__}.")


class Listing(Iterator[ExecutionSummary]):
    """Iterate over the executions that a filter finds; each page is read when it is needed.

    Attributes:
        looked_at: how many executions the store has looked at so far.
        unindexed: the conditions that no index answers: `state`, `task`, `tags`.
    """

    def __init__(self, read: Callable[[ExecutionId | None], ListExecutionsPage]) -> None:
        self.looked_at = 0
        self.unindexed: tuple[str, ...] = ()
        self._read = read
        self._rows = _rows(self._next_page)

    def __next__(self) -> ExecutionSummary:
        return next(self._rows)

    def _next_page(self, cursor: ExecutionId | None) -> tuple[Sequence[ExecutionSummary], ExecutionId | None]:
        page = self._read(cursor)
        self.looked_at += page.looked_at
        self.unindexed = page.unindexed
        return page.executions, page.next_cursor


def _identity(execution_id: Id) -> ExecutionId:
    return ExecutionId.parse(execution_id) if isinstance(execution_id, str) else execution_id


def _rows(read: Callable[[C | None], tuple[Sequence[T], C | None]]) -> Iterator[T]:
    """Yield the rows of every page, from the first one on."""
    cursor: C | None = None
    while True:
        rows, cursor = read(cursor)
        yield from rows
        if cursor is None:
            return
