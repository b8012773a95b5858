"""`Task`, a registered function, and `Submission`, a task with other options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, cast

import attrs

from flowfabric_worker._codecs.generators import is_generator
from flowfabric_worker._codecs.holes import Shape
from flowfabric_worker._flows.arguments import split_arguments
from flowfabric_worker._flows.children import ChildRequest
from flowfabric_worker._flows.nodes import NODE_HEADER, Node, graph_being_built
from flowfabric_worker._flows.placement import ANYWHERE, OPTIONS, Placement
from flowfabric_worker._tasks.limits import quota_of
from flowfabric_worker._tasks.local_context import LocalContext, iterate_in
from flowfabric_worker._tasks.options import TASK_ONLY, TaskOptions, change_options
from flowfabric_worker._tasks.signatures import find_context_parameter
from flowfabric_worker._tasks.submitting import create, create_many, take_connection
from flowfabric_worker.codec import Codec, TaskCodec, find_codec
from flowfabric_worker.context import TaskContext, context_of_this_thread, enter, leave
from flowfabric_worker.engine.errors import EngineError, error_from_code
from flowfabric_worker.engine.ids import ExecutionId, check_name
from flowfabric_worker.engine.types.submission import Created, CreateExecutionArgs, Duplicate
from flowfabric_worker.engine.types.workers import TaskPublication
from flowfabric_worker.run import Owner, Run
from flowfabric_worker.schedule import Schedule, check_needs_nothing, schedule_of

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Call(Generic[P]):
    """The arguments of one submission, for `submit_many`."""

    __slots__ = ("args", "kwargs")

    def __init__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        self.args = args
        self.kwargs = kwargs


Arguments: TypeAlias = Call[...] | Sequence[Any] | Mapping[str, Any]
"""The arguments of one call: a sequence by place, a mapping by name, or a `Call` with both."""


def call_of(args: Arguments, kwargs: Mapping[str, Any] | None = None) -> Call[...]:
    """Return the call with these arguments.

    Raises:
        TypeError: they are neither a sequence, a mapping nor a `Call`.
    """
    if isinstance(args, Call):
        return args
    if isinstance(args, Mapping):
        return Call(**args, **(kwargs or {}))
    if isinstance(args, Sequence) and not isinstance(args, str | bytes):
        return Call(*args, **(kwargs or {}))
    raise TypeError(f"The arguments of a call must be a sequence, a mapping or a Call(...), not {type(args).__name__}.")


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
        quota: the quota that limits its executions; None if it has no limits.

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
        self.owner = owner
        skip = {self.context_parameter} if self.context_parameter else set()
        self.schedule = _schedule(function, options, skip)
        self._codec = find_codec(options.codec or codec)
        self.codec = TaskCodec(function, self._codec, skip=skip)
        self.codec.check(final=False)
        self.quota = quota_of(self.name, options)
        self._submission = Submission(self, options)
        self._step_codecs: dict[Callable[..., Any], TaskCodec] = {}
        functools.update_wrapper(self, function, updated=())

    def __reduce__(self) -> str:
        # Pickle a task by reference: its module holds the task under the name of the function.
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<Task {self.name!r} of {self.owner.name!r}>"

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

    def node(self, *args: Any, **kwargs: Any) -> Node[R]:
        """Add this call to the flow of the `with` block around it, and return its node.

        An argument may be another node, or a list of nodes: the call gets their results in that place, as its parameter
        is annotated. With `options(...)`: `key=` names the node in its flow; `after=` has nodes that it waits for
        without their results; `need=` is how many of all these must succeed, "all" or a number, or "ended" if it waits
        for the end of all of them and takes a `ResultError` for each that failed; `others="cancel"` cancels the rest
        once enough have succeeded, or can no longer.

        Raises:
            RuntimeError: there is no `with worker.flow(...)` around the call.
            TypeError: the call does not match the signature, or the result of a node does not fit its parameter.
            ValidationError: `invalid_graph`, a key is used twice, a node belongs to another flow, or `need` is above
                the number of nodes.
            EncodingError: an argument cannot be encoded.
        """
        return self._submission.node(*args, **kwargs)

    def child_request(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ChildRequest:
        """Return what a handler needs to spawn this call; it calls `current().spawn(...)`."""
        return self._submission.child_request(args, kwargs)

    def publication(self) -> TaskPublication:
        """Return the options that a worker publishes, for clients that do not have the task's code."""
        options, policy = self.options_given, self.options_given.policy()
        if self.quota is not None:
            # A client cannot tell the key of a call, so all its calls are limited together.
            policy = attrs.evolve(policy, quota_policy_id=self.quota.ensure(self.owner.engine, self.quota.name))
        return TaskPublication(
            name=self.name,
            lane=options.lane,
            codec=self._codec.name,
            priority=options.priority,
            delay=options.delay,
            tags=options.tags,
            headers=options.headers,
            policy=policy,
        )

    def run(self, execution_id: ExecutionId | str) -> Run[R]:
        """Return the handle of an existing execution of this task."""
        identity = ExecutionId.parse(execution_id) if isinstance(execution_id, str) else execution_id
        return Run(identity, self, created=False)


class Submission(Generic[P, R]):
    """A task with the options that `Task.options` changed, and the connection whose transaction submissions join."""

    def __init__(
        self, task: Task[P, R], options: TaskOptions, connection: Any = None, placement: Placement = ANYWHERE
    ) -> None:
        self._task = task
        self._options = options
        self._policy = options.policy()
        self._connection = connection
        self._placement = placement

    def options(self, **changes: Any) -> Submission[P, R]:
        """Return the task with further changes to its options; see `Task.options`."""
        fixed = TASK_ONLY & changes.keys()
        if fixed:
            raise TypeError(f"{', '.join(sorted(fixed))} can only be set on the task: pass it to @worker.task().")
        connection = changes.pop("connection", self._connection)
        placement = self._placement.changed(changes)
        changed = change_options(self._options, {name: changes[name] for name in changes.keys() - OPTIONS})
        return Submission(self._task, changed, connection, placement)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Submit a durable execution of this call; see `Task.submit`."""
        self._placement.check_used("submit()")
        connection, own = take_connection(self._task.function, kwargs, self._connection)
        result = create(self._task.owner.engine, self._creation(args, own), connection)
        if isinstance(result, Duplicate) and not result.same_request and self._options.on_conflict == "raise":
            raise error_from_code("key_conflict", (str(result.execution_id), self._options.key))
        return Run(result.execution_id, self._task, created=isinstance(result, Created))

    def submit_many(self, calls: Iterable[Call[P] | tuple[Any, ...]], *, connection: Any = None) -> list[Run[R]]:
        """Submit a durable execution of each call; see `Task.submit_many`."""
        self._placement.check_used("submit_many()")
        connection = self._connection if connection is None else connection
        if self._options.key is not None:
            raise TypeError("One key cannot stand for many executions: submit them one by one, each with its own key.")
        runs: list[Run[R]] = []
        try:
            creations = (self._creation(*_arguments(call)) for call in calls)
            for results in create_many(self._task.owner.engine, creations, connection):
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

    def node(self, *args: Any, **kwargs: Any) -> Node[R]:
        """Add this call to the flow of the `with` block around it; see `Task.node`."""
        if self._connection is not None:
            raise TypeError("A node takes no connection=: a flow is submitted as a whole, in its own steps.")
        graph, placement = graph_being_built(), self._placement
        placement.check_used("node()", "after", "need", "others")
        given = split_arguments(self._task, args, kwargs, placement)
        graph.check_own([*given.parents, *placement.after])
        key = graph.key_for(self._options.key, self._task.name)
        after = placement.after or (() if given.parents else graph.implied)
        parents = {**given.parents, **{each: () for each in after if each not in given.parents}}
        placement.check_parents(len(parents), key)
        creation = attrs.evolve(
            self._creation(given.args, given.kwargs, given.shapes),
            # The key is that of the node, which is unique in its flow already.
            idempotency_key=None,
            headers={**self._options.headers, NODE_HEADER: key},
        )
        node: Node[R] = Node(graph, key, self._task, creation, parents, placement.policy())
        graph.add(node)
        return node

    def child_request(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ChildRequest:
        """Return what a handler needs to spawn this call; it calls `current().spawn(...)`."""
        self._placement.check_used("spawn()", "detached")
        if self._connection is not None or self._options.key is not None:
            raise TypeError("spawn() takes neither connection= nor key=: the name of a child is its key.")
        creation = self._creation(args, kwargs)
        return ChildRequest(creation=creation, detached=self._placement.detached, codec=self._task.codec)

    def _creation(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        shapes: Mapping[int | str, Shape] = MappingProxyType({}),
    ) -> CreateExecutionArgs:
        """Return the arguments of the engine's call.

        Args:
            args: the positional arguments.
            kwargs: the named arguments.
            shapes: the shapes of the arguments that results of other nodes fill.
        """
        options, policy, quota = self._options, self._policy, self._task.quota
        if options.unique is not None and options.key is None:
            raise TypeError("unique= says for how long a key refuses a second execution: give a key= too.")
        if quota is not None and policy.quota_policy_id is None:
            policy = attrs.evolve(policy, quota_policy_id=quota.of_call(self._task.owner.engine, args, kwargs))
        return CreateExecutionArgs(
            lane=options.lane,
            task=self._task.name,
            payload=self._task.codec.encode_call(args, kwargs, shapes),
            codec=self._task._codec.name,
            priority=options.priority,
            idempotency_key=options.key,
            delay=options.delay,
            delay_until=options.at,
            policy=policy,
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


def _result_codec(function: Callable[..., Any], codec: Codec) -> TaskCodec:
    try:
        return TaskCodec(function, codec)
    except ValueError:
        # Built-in functions such as time.time may have no signature; they return plain values.
        return TaskCodec(_unannotated, codec)


def _unannotated() -> Any: ...
