"""`Client`: submits and watches executions of tasks whose code is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self, TypeAlias, TypeVar

from flowfabric_worker.codec import Codec
from flowfabric_worker.config import store_url
from flowfabric_worker.engine.core import DEFAULT_PATIENCE
from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE, Limits
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter
from flowfabric_worker.engine.types.operating import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.reads import (
    ExecutionFilter,
    ExecutionInfo,
    ExecutionSummary,
    Explanation,
    LaneInfo,
)
from flowfabric_worker.engine.types.schedules import ScheduleInfo
from flowfabric_worker.engine.types.workers import WorkerInfo
from flowfabric_worker.task import Call, Run, Task, TaskOptions

T = TypeVar("T")
C = TypeVar("C")

Id: TypeAlias = ExecutionId | str
"""An execution's id, or its text."""

Arguments: TypeAlias = Call[...] | Sequence[Any] | Mapping[str, Any]
"""The arguments of one call: a sequence by place, a mapping by name, or a `Call` with both."""

Runs: TypeAlias = list[Run[Any]]


class Client:
    """What producers and operators need of a store: it knows tasks by their names alone.

    Arguments and results are plain values, as the codec has them; whether a call fits the task's signature shows
    when a worker takes it up. Nothing is connected before the first call. Safe to share between threads.

    Args:
        url: the store; None for `$FLOWFABRIC_URL`, else `embedded://.flowfabric`.
        namespace: the tenant whose executions it sees.
        codec: how arguments travel: "json", "msgpack", or an object of one's own. Results come back in the same.
        limits: sizes that an operator allows.
        patience: seconds for which a call is sent again after a failure of the connection; 0 to send it once.

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
        codec: str | Codec = "json",
        limits: Limits | None = None,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        self.url = store_url(url)
        self.namespace = namespace
        self.engine = open_engine(self.url, namespace=namespace, limits=limits, patience=patience)
        self._codec = codec
        self._tasks: dict[str, Task[..., Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections to the store."""
        self.engine.close()

    # Producing

    def submit(
        self, task: str, args: Arguments = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Run[Any]:
        """Makes a durable execution of a task.

        Args:
            task: its name, as its worker registered it.
            args: the arguments by place, or all of them by name as a mapping.
            kwargs: arguments by name, beside those by place.
            options: of `TaskOptions`, but those that belong to the task: lease, codec, permanent. What the task's
                decorator says is not known here, so the lane and the retries have to be said.

        Raises:
            TypeError: an unknown option.
            EncodingError: an argument is not a plain value.
            EngineError: the store refused it, or cannot be reached.
        """
        call = _call(args, kwargs)
        return self._task(task).options(**options).submit(*call.args, **call.kwargs)

    def submit_many(self, task: str, calls: Iterable[Arguments], **options: Any) -> Runs:
        """Makes a durable execution of each call, in bounded batches; returns the runs in order. See `submit`."""
        return self._task(task).options(**options).submit_many(_call(each) for each in calls)

    def run(self, execution_id: Id) -> Run[Any]:
        """The run of an execution that was submitted before.

        Raises:
            ValidationError: `invalid_execution_id`.
        """
        return self._task("execution").run(execution_id)

    def result(self, execution_id: Id, timeout: float | timedelta | None = None) -> Any:
        """What an execution returned, as a plain value; blocks until it ends. See `Run.result`.

        Raises:
            ExecutionFailed, ExecutionCancelled, ExecutionExpired, ExecutionSkipped: it ended otherwise.
            EngineTimeoutError: it did not end in time; it goes on.
            NotFoundError: `execution_not_found`.
        """
        return self.run(execution_id).result(timeout)

    # Watching

    def get(self, execution_id: Id) -> ExecutionInfo | None:
        """Everything about an execution but its arguments and result; None if there is none."""
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
    ) -> Iterator[ExecutionSummary]:
        """The executions that fit every filter, oldest first; reads page after page while it is iterated.

        Raises:
            ValidationError: no public state has that name.
        """
        chosen = ExecutionFilter(lane=lane, state=state, task=task, tags=tags or {})

        def read(cursor: ExecutionId | None) -> tuple[Sequence[ExecutionSummary], ExecutionId | None]:
            page = self.engine.list_executions(None, cursor, MAX_PAGE_SIZE, chosen)
            return page.executions, page.next_cursor

        return _rows(read)

    def lanes(self) -> Iterator[LaneInfo]:
        """The lanes by name, with what each holds per state."""

        def read(cursor: str | None) -> tuple[Sequence[LaneInfo], str | None]:
            page = self.engine.list_lanes(cursor, MAX_PAGE_SIZE)
            return page.lanes, page.next_cursor

        return _rows(read)

    def workers(self) -> Iterator[WorkerInfo | DamagedRow]:
        """The workers by instance id; dead ones are listed for a day."""

        def read(cursor: str | None) -> tuple[Sequence[WorkerInfo | DamagedRow], str | None]:
            page = self.engine.list_workers(cursor, MAX_PAGE_SIZE)
            return page.workers, page.next_cursor

        return _rows(read)

    def schedules(self) -> Iterator[ScheduleInfo | DamagedRow]:
        """The schedules by name: when each ticks, and how far it is."""

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
        """Every end of an execution behind a cursor, and those to come; see `EngineBackend.subscribe_completions`."""
        return self.engine.subscribe_completions(cursor, filter, timeout)

    # Operating

    def cancel(self, execution_id: Id, reason: str = "") -> None:
        """Ends an execution as cancelled, whatever it is doing.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_active`, it ended otherwise.
        """
        self.engine.cancel_execution(CancelExecutionArgs(execution_id=_identity(execution_id), reason=reason))

    def replay(self, execution_id: Id) -> None:
        """Runs an ended execution again.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_terminal`, `max_replays_exhausted`.
        """
        self.engine.replay_execution(ReplayExecutionArgs(execution_id=_identity(execution_id)))

    def pause_lane(self, lane: str) -> bool:
        """Makes a lane hand nothing out; it loses nothing. False if it was paused."""
        return self.engine.pause_lane(lane)

    def resume_lane(self, lane: str) -> bool:
        """Makes a paused lane hand work out again. False if it was not paused."""
        return self.engine.resume_lane(lane)

    def pause_schedule(self, name: str) -> bool:
        """Makes a schedule submit nothing; what it leaves out is not made up for. False if it was paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        return self.engine.pause_schedule(name)

    def resume_schedule(self, name: str) -> bool:
        """Lets a paused schedule go on from now. False if it was not paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        return self.engine.resume_schedule(name)

    def remove_schedule(self, name: str) -> None:
        """Forgets a schedule whose code is gone. A worker that still has it registers it anew.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        self.engine.remove_schedule(name)

    def _task(self, name: str) -> Task[..., Any]:
        """A task of that name which takes any plain arguments; its code is elsewhere."""
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = Task(_taking_anything(name), self, name, TaskOptions(), self._codec)
        return task


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


def _identity(execution_id: Id) -> ExecutionId:
    return ExecutionId.parse(execution_id) if isinstance(execution_id, str) else execution_id


def _rows(read: Callable[[C | None], tuple[Sequence[T], C | None]]) -> Iterator[T]:
    """The rows of every page, from the first one on."""
    cursor: C | None = None
    while True:
        rows, cursor = read(cursor)
        yield from rows
        if cursor is None:
            return
