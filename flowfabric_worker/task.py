"""`Task`, a registered function, and `Run`, the handle that its submission returns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from flowfabric_worker._codecs.generators import is_generator
from flowfabric_worker._tasks.local_context import LocalContext, iterate_in
from flowfabric_worker._tasks.options import TASK_ONLY, TaskOptions, change_options
from flowfabric_worker._tasks.signatures import find_context_parameter
from flowfabric_worker._tasks.submitting import create, create_many, take_connection
from flowfabric_worker.codec import Codec, TaskCodec, find_codec
from flowfabric_worker.context import TaskContext, context_of_this_thread, enter, inside_handler, leave
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError, error_from_code
from flowfabric_worker.engine.ids import ExecutionId, check_name
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from flowfabric_worker.engine.types.submission import Created, CreateExecutionArgs, Duplicate
from flowfabric_worker.engine.types.workers import TaskPublication
from flowfabric_worker.outcomes import (
    ExecutionCancelled,
    ExecutionExpired,
    ExecutionFailed,
    ExecutionSkipped,
    ResultError,
)
from flowfabric_worker.schedule import Schedule, check_needs_nothing, schedule_of
from flowfabric_worker.stream import RunStream, RunSummary, read_summary

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Owner(Protocol):
    """The worker or client that a task belongs to."""

    @property
    def name(self) -> str: ...

    @property
    def engine(self) -> EngineBackend: ...


class Call(Generic[P]):
    """The arguments of one submission, for `submit_many`."""

    __slots__ = ("args", "kwargs")

    def __init__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        self.args = args
        self.kwargs = kwargs


class Run(Generic[R]):
    """The handle of a submitted execution.

    Attributes:
        id: the execution's id.
        created: False if an earlier submission with the same key had created the execution.
    """

    __slots__ = ("_codec", "_engine", "_task", "created", "id")

    def __init__(self, execution_id: ExecutionId, task: Task[..., R], created: bool) -> None:
        self.id = execution_id
        self.created = created
        self._task = task
        self._engine = task._owner.engine
        self._codec = task.codec

    def __reduce__(self) -> tuple[Callable[..., Run[Any]], tuple[object, ExecutionId, bool]]:
        # Restore the run through the client if the task belongs to one: such a task cannot be imported.
        owner = self._task._owner
        return _restore_run, (owner if hasattr(owner, "submit") else self._task, self.id, self.created)

    def __repr__(self) -> str:
        return f"Run({str(self.id)!r})"

    @overload
    def result(self: Run[Generator[Any, Any, T]], timeout: float | timedelta | None = None) -> T: ...

    @overload
    def result(self: Run[Iterator[T]], timeout: float | timedelta | None = None) -> Any: ...

    @overload
    def result(self: Run[Iterable[T]], timeout: float | timedelta | None = None) -> Any: ...

    @overload
    def result(self, timeout: float | timedelta | None = None) -> R: ...

    def result(self, timeout: float | timedelta | None = None) -> Any:
        """Wait until the execution ends, and return its result.

        Args:
            timeout: seconds, or a timedelta; None to wait without a limit.

        Raises:
            ExecutionFailed, ExecutionCancelled, ExecutionExpired, ExecutionSkipped: the execution did not succeed.
            EngineTimeoutError: the execution did not end in time; it continues.
            RuntimeError: the call was made inside a handler, where it would block a handler thread.
        """
        if inside_handler():
            raise RuntimeError(
                "result() inside a handler would block its thread, and a worker whose threads all wait cannot make "
                "progress: use current().gather(...)."
            )
        limit = timedelta(seconds=timeout) if isinstance(timeout, int | float) else timeout
        outcome = self._engine.wait_for_result(self.id, limit)
        if outcome.outcome is not TerminalOutcome.SUCCESS:
            raise result_error(outcome)
        codec = self._codec and self._codec.named(outcome.codec)
        return codec.decode_result(outcome.result) if codec else outcome.result

    @overload
    def stream(
        self: Run[Generator[T, Any, Any]], after: str | None = None, *, timeout: float | timedelta | None = None
    ) -> RunStream[T]: ...

    @overload
    def stream(
        self: Run[Iterator[T]], after: str | None = None, *, timeout: float | timedelta | None = None
    ) -> RunStream[T]: ...

    @overload
    def stream(
        self: Run[Iterable[T]], after: str | None = None, *, timeout: float | timedelta | None = None
    ) -> RunStream[T]: ...

    @overload
    def stream(self, after: str | None = None, *, timeout: float | timedelta | None = None) -> RunStream[Any]: ...

    def stream(self, after: str | None = None, *, timeout: float | timedelta | None = None) -> RunStream[Any]:
        """Return an iterator over the values that the run emits, from the first one on, until the run has ended.

        It yields a `StreamValue` for each value, an `AttemptBegan` where another attempt begins, which emits its
        values from the start again, and a `ValuesDropped` where live values were dropped before they were read.
        Values that others appended with the engine come as bytes.

        Args:
            after: the cursor of an item, to continue behind it; None for the beginning.
            timeout: how long to wait for each item, in seconds or as a timedelta; None to wait without a limit.

        Raises:
            ValidationError: `invalid_cursor`, the cursor is damaged, or belongs to another run.
            RuntimeError: the call was made inside a handler, where it would block a handler thread.
        """
        if inside_handler():
            raise RuntimeError(
                "stream() inside a handler would block its thread, and a worker whose threads all wait makes no "
                "progress: read the stream in another process or thread."
            )
        seconds = timeout / timedelta(seconds=1) if isinstance(timeout, timedelta) else timeout
        return RunStream(self._engine, self.id, self._codec, after, seconds)

    def summary(self, attempt: int | None = None) -> RunSummary | None:
        """Return the summary document that the handler has made with `current().summary.merge(patch)`.

        Args:
            attempt: the number of the attempt, from 0; None for the latest one.

        Returns:
            The document and its version; None if the attempt has merged no patch.

        Raises:
            NotFoundError: `execution_not_found`.
        """
        return read_summary(self._engine, self.id, attempt)

    def state(self) -> PublicState | None:
        """Return the present state of the execution; None if its retention is over."""
        return self._engine.read_execution_state(self.id)

    def cancel(self, reason: str = "") -> None:
        """Cancel the execution, whether it is waiting, running or suspended."""
        self._engine.cancel_execution(CancelExecutionArgs(execution_id=self.id, reason=reason))

    def replay(self, *, steps: str = "keep", from_step: str | None = None) -> None:
        """Run the execution again, which must have ended.

        Args:
            steps: "keep" what its steps and waits brought, or "forget" it.
            from_step: a step or a wait: keep what was recorded before it, and forget it and all that came after.
        """
        self._engine.replay_execution(ReplayExecutionArgs(execution_id=self.id, steps=steps, from_step=from_step))


_ERRORS: dict[TerminalOutcome, type[ResultError]] = {
    TerminalOutcome.FAILED: ExecutionFailed,
    TerminalOutcome.CANCELLED: ExecutionCancelled,
    TerminalOutcome.EXPIRED: ExecutionExpired,
    TerminalOutcome.SKIPPED: ExecutionSkipped,
}


def result_error(outcome: ExecutionOutcome) -> ResultError:
    """Return the error for an execution that did not succeed."""
    reason = outcome.error or outcome.outcome.value
    return _ERRORS[outcome.outcome](outcome.execution_id, reason, outcome.detail.decode("utf-8", "replace"))


class Task(Generic[P, R]):
    """A function that can be called directly, or submitted as a durable execution.

    Args:
        function: the decorated function.
        owner: the worker that the task is registered with, or the client that submits it.
        name: the task's name in the store.
        options: the options given to the decorator.
        codec: the codec of the owner, which a task without a codec option uses.

    Attributes:
        is_generator: True if the function yields the values of its stream.
        schedule: when the worker submits the task by itself; None if it has no schedule.

    Raises:
        TypeError: the function is async or a method, or an annotation cannot be encoded.
        TypeError, ValueError: the schedule is not valid, or the function has parameters without defaults.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self, function: Callable[P, R], owner: Owner, name: str, options: TaskOptions, codec: str | Codec
    ) -> None:
        self.function = function
        self.name = check_name(name, "a task's name")
        self.options_given = options
        self.is_generator = is_generator(function)
        self.context_parameter = find_context_parameter(function)
        self._owner = owner
        skip = {self.context_parameter} if self.context_parameter else set()
        self.schedule = _schedule(function, options, skip)
        self._codec = find_codec(options.codec or codec)
        self.codec = TaskCodec(function, self._codec, skip=skip)
        self.codec.check(final=False)
        self._submission = Submission(self, options)
        self._step_codecs: dict[Callable[..., Any], TaskCodec] = {}
        functools.update_wrapper(self, function, updated=())

    def __reduce__(self) -> str:
        # Pickle a task by reference: its module holds the task under the name of the function.
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<Task {self.name!r} of {self._owner.name!r}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in the caller's thread, without a store; inside a handler it is part of that attempt."""
        around = context_of_this_thread()
        context = around or LocalContext(self.name, self.codec, functools.partial(step_codec_of, self))
        args, kwargs = self._with_context(context, args, kwargs)  # type: ignore[assignment]  # the same, and the context
        if around is not None:
            return self.function(*args, **kwargs)
        if self.is_generator:
            return cast(R, iterate_in(context, functools.partial(self.function, *args, **kwargs)))
        token = enter(context)
        try:
            return self.function(*args, **kwargs)
        finally:
            leave(token)

    def _with_context(
        self, context: TaskContext, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the arguments of a plain call, with the context added unless the caller passed one."""
        name = self.context_parameter
        if name is None or name in kwargs or any(isinstance(each, TaskContext) for each in args):
            return args, kwargs
        place = list(inspect.signature(self.function).parameters).index(name)
        if place < len(args):
            return (*args[:place], context, *args[place:]), kwargs
        return args, {**kwargs, name: context}

    def options(self, **changes: Any) -> Submission[P, R]:
        """Return the task with other options, for the executions that are submitted through the returned object.

        Raises:
            TypeError: an option is unknown, or belongs to the task itself.
        """
        return self._submission.options(**changes)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Submit a durable execution of this call, and return its handle.

        With `connection=`, a psycopg connection to the database of a `postgresql://` store, the execution is part of
        that connection's transaction. A task with a parameter of that name takes it from `options(connection=...)`.

        Raises:
            TypeError: the call does not match the signature; this is Python's own error.
            EncodingError: an argument cannot be encoded.
            ConflictError: `key_conflict`, the key was used with other arguments.
            EngineError: the store refused the call, or cannot be reached.
        """
        return self._submission.submit(*args, **kwargs)

    def submit_many(self, calls: Iterable[Call[P] | tuple[Any, ...]], *, connection: Any = None) -> list[Run[R]]:
        """Submit a durable execution of each call, in bounded batches, and return the runs in order.

        If a call is wrong, its batch is not submitted; the attribute `runs` of the error holds the runs before it.
        """
        return self._submission.submit_many(calls, connection=connection)

    def publication(self) -> TaskPublication:
        """Return the options that a worker publishes, for clients that do not have the task's code."""
        options = self.options_given
        return TaskPublication(
            name=self.name,
            lane=options.lane,
            codec=self._codec.name,
            priority=options.priority,
            delay=options.delay,
            tags=options.tags,
            headers=options.headers,
            policy=options.policy(),
        )

    def run(self, execution_id: ExecutionId | str) -> Run[R]:
        """Return the handle of an existing execution of this task."""
        identity = ExecutionId.parse(execution_id) if isinstance(execution_id, str) else execution_id
        return Run(identity, self, created=False)


class Submission(Generic[P, R]):
    """A task with the options that `Task.options` changed, and the connection whose transaction submissions join."""

    def __init__(self, task: Task[P, R], options: TaskOptions, connection: Any = None) -> None:
        self._task = task
        self._options = options
        self._policy = options.policy()
        self._connection = connection

    def options(self, **changes: Any) -> Submission[P, R]:
        """Return the task with further changes to its options; see `Task.options`."""
        fixed = TASK_ONLY & changes.keys()
        if fixed:
            raise TypeError(f"{', '.join(sorted(fixed))} can only be set on the task: pass it to @worker.task().")
        connection = changes.pop("connection", self._connection)
        return Submission(self._task, change_options(self._options, changes), connection)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Submit a durable execution of this call; see `Task.submit`."""
        connection, own = take_connection(self._task.function, kwargs, self._connection)
        result = create(self._task._owner.engine, self._creation(args, own), connection)
        if isinstance(result, Duplicate) and not result.same_request and self._options.on_conflict == "raise":
            raise error_from_code("key_conflict", (str(result.execution_id), self._options.key))
        return Run(result.execution_id, self._task, created=isinstance(result, Created))

    def submit_many(self, calls: Iterable[Call[P] | tuple[Any, ...]], *, connection: Any = None) -> list[Run[R]]:
        """Submit a durable execution of each call; see `Task.submit_many`."""
        connection = self._connection if connection is None else connection
        if self._options.key is not None:
            raise TypeError("One key cannot stand for many executions: submit them one by one, each with its own key.")
        runs: list[Run[R]] = []
        try:
            creations = (self._creation(*_arguments(call)) for call in calls)
            for results in create_many(self._task._owner.engine, creations, connection):
                refused = [result for result in results if isinstance(result, EngineError)]
                runs += [
                    Run(result.execution_id, self._task, created=True)
                    for result in results
                    if not isinstance(result, EngineError)
                ]
                if refused:
                    raise refused[0]
        except Exception as error:
            error.runs = runs  # type: ignore[attr-defined]  # also on Python's own TypeError
            error.add_note(f"{len(runs)} runs were submitted before this; see the attribute `runs` of this error.")
            raise
        return runs

    def _creation(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CreateExecutionArgs:
        options = self._options
        return CreateExecutionArgs(
            lane=options.lane,
            task=self._task.name,
            payload=self._task.codec.encode_call(args, kwargs),
            codec=self._task._codec.name,
            priority=options.priority,
            idempotency_key=options.key,
            delay=options.delay,
            delay_until=options.at,
            policy=self._policy,
            tags=options.tags,
            headers=options.headers,
        )


def creation_of(task: Task[..., Any]) -> CreateExecutionArgs:
    """Return the arguments of the engine's call that submits a task without arguments."""
    return task._submission._creation((), {})


def step_codec_of(task: Task[..., Any], function: Callable[..., Any]) -> TaskCodec:
    """Return the codec for the results of a step, given by the return annotation of its function."""
    codec = task._step_codecs.get(function) if inspect.isfunction(function) else None
    if codec is None:
        codec = _result_codec(function, task._codec)
        if inspect.isfunction(function) and "<" not in function.__qualname__:
            # Cache only for functions of modules: a local function would keep the objects that it refers to alive.
            task._step_codecs[function] = codec
    return codec


def _schedule(function: Callable[..., Any], options: TaskOptions, skip: set[str]) -> Schedule | None:
    """Return the schedule of a task; None if it has none."""
    schedule = schedule_of(options.every, options.cron, options.timezone, options.missed)
    if schedule is not None:
        check_needs_nothing(function, given=skip)
        if options.key is not None or options.at is not None:
            raise TypeError("key= and at= would turn all ticks of a schedule into one execution: leave them out.")
    return schedule


def _arguments(call: Call[Any] | tuple[Any, ...]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(call, Call):
        return call.args, call.kwargs
    if isinstance(call, tuple):
        return call, {}
    raise TypeError(f"submit_many() takes Call(...) objects or tuples of arguments, not {type(call).__name__}.")


def _restore_run(source: Any, execution_id: ExecutionId, created: bool) -> Run[Any]:
    """Restore a pickled run from its task or its client."""
    run: Run[Any] = source.run(execution_id)
    run.created = created
    return run


def _result_codec(function: Callable[..., Any], codec: Codec) -> TaskCodec:
    try:
        return TaskCodec(function, codec)
    except ValueError:
        # Built-in functions such as time.time may have no signature; they return plain values.
        return TaskCodec(_unannotated, codec)


def _unannotated() -> Any: ...
