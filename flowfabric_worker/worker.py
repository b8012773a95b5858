"""`Worker`: registers tasks, and runs them in this thread for tests."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, overload
from uuid import uuid4

from flowfabric_worker._runtime.inline import InlineRuntime
from flowfabric_worker._tasks.options import TaskOptions, change_options
from flowfabric_worker._tasks.signatures import check_function
from flowfabric_worker.codec import Codec, find_codec
from flowfabric_worker.config import store_url
from flowfabric_worker.context import TaskContext
from flowfabric_worker.engine import forks
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.limits import Limits
from flowfabric_worker.engine.types.checks import as_capabilities
from flowfabric_worker.flow import Flow
from flowfabric_worker.middleware import Around, Middleware, check_middleware
from flowfabric_worker.task import Task

if TYPE_CHECKING:
    from flowfabric_worker.engine.engine import Engine

P = ParamSpec("P")
R = TypeVar("R")


class Decorator(Protocol):
    """The decorator that `worker.task(...)` returns; it keeps the types of the function without its context."""

    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], R], /) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class Tasks(dict[str, Task[..., Any]]):
    """The tasks of a worker by name; the part after the last dot is enough if only one task has it."""

    def __missing__(self, name: str) -> Task[..., Any]:
        found = [task for full, task in self.items() if full.rpartition(".")[2] == name]
        if len(found) != 1:
            raise KeyError(name)
        return found[0]


class Worker:
    """A set of tasks, and the store of their executions.

    A worker connects at its first submission, not when it is created, decorates functions or is imported.

    Args:
        name: the worker's name, which operators see and with which the names of its tasks begin.
        url: the URL of the store; None for `$FLOWFABRIC_URL`, else `embedded://.flowfabric`.
        namespace: the tenant in the store.
        codec: how arguments and results are encoded: "json", "msgpack", or an object with the members of `Codec`.
        defaults: the options of every task that does not set them.
        limits: the sizes that an operator allows.
        middleware: what runs around every handler, the outermost first: `Middleware` objects, or functions that take
            the `TaskContext` and return a context manager.

    Attributes:
        middleware: the middleware as a tuple.

    Raises:
        TypeError: a default is not an option, or an item of `middleware` is not middleware.
    """

    def __init__(
        self,
        name: str,
        url: str | None = None,
        *,
        namespace: str = "default",
        codec: str | Codec = "json",
        defaults: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        middleware: Iterable[Middleware | Around] = (),
    ) -> None:
        self.name = check_name(name, "a worker's name")
        self.url = url
        self.namespace = check_name(namespace, "namespace")
        self._codec = find_codec(codec)
        self._defaults = change_options(TaskOptions(), defaults or {})
        self._limits = limits
        self.middleware = check_middleware(middleware)
        self._tasks = Tasks()
        self._engine: Engine | None = None
        self._lends = False
        # The capabilities that `eager` was given; None outside of it.
        self._eager_capabilities: frozenset[str] | None = None
        self.reset_after_fork()
        forks.remember(self)

    def reset_after_fork(self) -> None:
        """Replace the lock in a forked child, where the thread that held it does not exist."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Worker {self.name!r} with {len(self._tasks)} tasks>"

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The registered tasks by their names in the store; `tasks["send"]` returns "shop.send" too."""
        return MappingProxyType(self._tasks)

    @property
    def engine(self) -> Engine:
        """The engine on this worker's store; it connects at its first call."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._engine = self._open_engine()
        return self._engine

    def _open_engine(self) -> Engine:
        # Import the engine here, because a program that only decorates its tasks opens none.
        from flowfabric_worker.engine.engine import open_engine

        engine = open_engine(store_url(self.url), namespace=self.namespace, limits=self._limits)
        if self._eager_capabilities is None:
            return engine
        from flowfabric_worker._runtime.eager import EagerEngine

        return EagerEngine(engine, self.tasks, self.middleware, self._eager_capabilities)

    @overload
    def task(self, function: Callable[Concatenate[TaskContext, P], R], /) -> Task[P, R]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(self, /, *, name: str | None = None, **options: Any) -> Decorator: ...

    def task(self, function: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
        """Register a function as a task; used as `@worker.task` or `@worker.task(lane=..., retry=...)`.

        Args:
            name: the task's full name in the store; None for the names of the worker and the function, such as
                `shop.send_receipt`. If you rename the worker or the function, give the old name here.
            options: see `TaskOptions`.

        Raises:
            TypeError: an option is unknown, or a function with a schedule needs arguments.
            ValueError: another task of this worker has the name, or the schedule is not valid.
        """
        given = change_options(self._defaults, options)

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            check_function(function)
            full_name = f"{self.name}.{_name_of(function)}" if name is None else name
            return self._register(Task(function, self, full_name, given, self._codec))

        return register if function is None else register(function)

    def flow(self, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Flow:
        """Return a flow without nodes; `task.node(...)` adds them inside `with worker.flow(name) as flow:`.

        Args:
            name: the name of the flow, for operators.
            key: an idempotency key: the same graph under the same key is submitted once.
            tags: names and values to find the flow by.

        Raises:
            ValidationError: an argument is not valid.
        """
        return Flow(self, name, key=key, tags=tags)

    def check(self) -> None:
        """Check that the annotations of all tasks resolve and can be encoded, once everything is imported.

        A worker runs this check when it starts.

        Raises:
            TypeError: an annotation of a task cannot be encoded or resolved; the message names it.
        """
        for task in self._tasks.values():
            task.codec.check(final=True)

    def publish(self) -> None:
        """Publish the options of the tasks in the store, for clients that do not have their code.

        A worker publishes its tasks when it starts; call this if producers start first. A publication is kept for a
        week.

        Raises:
            TypeError: see `check`.
            EngineError: the store refused the call, or cannot be reached.
        """
        self.check()
        self.engine.publish_tasks([task.publication() for task in self._tasks.values()])

    def _register(self, task: Task[P, R]) -> Task[P, R]:
        if task.name in self._tasks:
            raise ValueError(
                f"The worker {self.name!r} already has a task named {task.name!r}: give one of them another name=."
            )
        self._tasks[task.name] = task
        if self._lends:
            self.engine.publish_tasks([task.publication()])
        return task

    def close(self) -> None:
        """Close the connections to the store; the next use opens them again."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    # For tests

    def run_until_idle(self, *, capabilities: Iterable[str] = ()) -> int:
        """Run everything that is due, including what the handlers submit, in this thread and without sleeping.

        All lanes are served. As in a worker, an exception of a handler becomes the outcome of its execution; only
        KeyboardInterrupt is also raised to the caller. A schedule begins with the first call: its later ticks run once
        the clock has reached them.

        Args:
            capabilities: capabilities in addition to those that the tasks require.

        Returns:
            The number of times that a handler ran.

        Raises:
            EngineError: the store cannot be used.
        """
        engine, chosen = self.engine, as_capabilities(capabilities)
        self.publish()
        inline = InlineRuntime(engine, engine.limits, self.tasks, self.middleware, chosen, schedules=True)
        return inline.run_until_idle()

    @contextmanager
    def in_memory(self) -> Iterator[Self]:
        """Use a fresh store in memory, whose clock can be set, for the duration of a block.

        Used as `with worker.in_memory():`.
        """
        with self._lent(None):
            self.engine.prepare(testing=True)
            self.publish()
            yield self

    @contextmanager
    def eager(self, *, capabilities: Iterable[str] = ()) -> Iterator[Self]:
        """Run every submission at once in the caller's thread, on a fresh store in memory.

        Used as `with worker.eager():`. `submit` and `submit_many` return when the executions have ended, including
        those that their handlers submitted. Everything else is as in a worker: encoding, retries, timeouts, steps.
        `result()` raises the failure of an execution. No time passes: the store's clock moves forward over delays,
        sleeps and back-offs. An execution that waits for a signal continues when the signal comes; `result()` moves
        the clock to the end of its time instead. Inside a handler `submit` returns at once, and the work runs when the
        handler has ended. If several threads submit at the same time, one of them runs all the work.

        Args:
            capabilities: capabilities in addition to those that the tasks require.

        Raises:
            RuntimeError: raised by `submit` if an execution cannot end, or keeps submitting new work.
        """
        with self._lent(as_capabilities(capabilities)):
            self.publish()
            yield self

    @contextmanager
    def _lent(self, eager_capabilities: frozenset[str] | None) -> Iterator[None]:
        """Use a fresh store in memory for the duration of a block; the worker's own connections stay open."""
        own = self.url, self._engine, self._eager_capabilities, self._lends
        name = uuid4().hex
        self.url, self._engine, self._eager_capabilities, self._lends = (
            f"memory://{name}",
            None,
            eager_capabilities,
            True,
        )
        try:
            yield
        finally:
            self.close()
            from flowfabric_worker.engine.engine import forget_memory

            forget_memory(name)
            self.url, self._engine, self._eager_capabilities, self._lends = own


def _name_of(function: Any) -> str:
    """Return the name of a function, or of the function that a partial calls.

    Raises:
        TypeError: the object has no name.
    """
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", None)
    if not isinstance(name, str):
        raise TypeError(f"{function!r:.100} has no name: give the task a name=.")
    return name
