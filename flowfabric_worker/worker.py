"""`Worker`: where tasks are registered."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, overload
from uuid import uuid4

from flowfabric_worker._runtime.eager import EagerEngine
from flowfabric_worker._runtime.inline import InlineRuntime
from flowfabric_worker._tasks.options import TaskOptions, change_options
from flowfabric_worker._tasks.signatures import check_function
from flowfabric_worker.codec import Codec, find_codec
from flowfabric_worker.config import store_url
from flowfabric_worker.context import TaskContext
from flowfabric_worker.engine import forks
from flowfabric_worker.engine.engine import Engine, forget_memory, open_engine
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.limits import Limits
from flowfabric_worker.engine.types.checks import as_capabilities
from flowfabric_worker.middleware import Around, Middleware, check_middleware
from flowfabric_worker.task import Task

P = ParamSpec("P")
R = TypeVar("R")


class Decorator(Protocol):
    """What `worker.task(...)` returns: it keeps the types of the function, without a context in first place."""

    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], R], /) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class Tasks(dict[str, Task[..., Any]]):
    """The tasks of a worker by name; what stands behind the last dot finds a task too, where only one has it."""

    def __missing__(self, name: str) -> Task[..., Any]:
        found = [task for full, task in self.items() if full.rpartition(".")[2] == name]
        if len(found) != 1:
            raise KeyError(name)
        return found[0]


class Worker:
    """A set of tasks, and the store that their executions live in.

    Creating one, decorating functions and importing connect to nothing; the first submission does.

    Args:
        name: what operators call it; the names of its tasks begin with it.
        url: the store; None for `$FLOWFABRIC_URL`, else `embedded://.flowfabric`.
        namespace: separates tenants in one store.
        codec: how arguments and results travel: "json", "msgpack", or an object of one's own.
        defaults: options of every task that does not say otherwise.
        limits: sizes that an operator allows.
        middleware: what goes around every handler, the outermost first: `Middleware` objects, or functions that take
            the `TaskContext` and return a context manager.

    Attributes:
        middleware: the same, checked.

    Raises:
        TypeError: an unknown option among the defaults, or something that is no middleware.
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
        # What `eager` offers while it lasts.
        self._eager_capabilities: frozenset[str] | None = None
        self.reset_after_fork()
        forks.remember(self)

    def reset_after_fork(self) -> None:
        """In a forked process: a lock may have been held by a thread that is not there. The engine sees to itself."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Worker {self.name!r} with {len(self._tasks)} tasks>"

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The registered tasks by their names in the store; `tasks["send"]` finds "shop.send" too."""
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
        engine = open_engine(store_url(self.url), namespace=self.namespace, limits=self._limits)
        if self._eager_capabilities is None:
            return engine
        return EagerEngine(engine, self.tasks, self.middleware, self._eager_capabilities)

    @overload
    def task(self, function: Callable[Concatenate[TaskContext, P], R], /) -> Task[P, R]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(self, /, *, name: str | None = None, **options: Any) -> Decorator: ...

    def task(self, function: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
        """Register a function; used as `@worker.task` or `@worker.task(lane=..., retry=...)`.

        Args:
            name: the whole of what executions call it; None for the worker's name and the function's, such as
                `shop.send_receipt`. Give the former name when the worker or the function is renamed.
            options: see `TaskOptions`.

        Raises:
            TypeError: an unknown option, or a schedule for a function that needs arguments.
            ValueError: another task of this worker has the name, or its schedule is not valid.
        """
        given = change_options(self._defaults, options)

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            check_function(function)
            full_name = f"{self.name}.{_name_of(function)}" if name is None else name
            return self._register(Task(function, self, full_name, given, self._codec))

        return register if function is None else register(function)

    def check(self) -> None:
        """Refuse tasks whose annotations cannot be encoded or do not resolve, now that everything is imported.

        A worker that starts does this by itself.

        Raises:
            TypeError: there is one; the message names it.
        """
        for task in self._tasks.values():
            task.codec.check(final=True)

    def publish(self) -> None:
        """Write into the store how the tasks are submitted, for clients that do not have their code.

        A worker that runs does this by itself; call it where producers come first. A publication is kept for a week.

        Raises:
            TypeError: see `check`.
            EngineError: the store refused it, or cannot be reached.
        """
        self.check()
        self.engine.publish_tasks([task.publication() for task in self._tasks.values()])

    def _register(self, task: Task[P, R]) -> Task[P, R]:
        if task.name in self._tasks:
            raise ValueError(
                f"The worker {self.name!r} has a task named {task.name!r} already; give one of them a name=."
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
        """Run everything that is due, in this thread and without sleeping, also what that brings about.

        All lanes are served. What a handler raises becomes the outcome of its execution, as it does in a worker; only
        KeyboardInterrupt comes out as well. A schedule begins with the first call: ticks after it run when the clock
        has come to them.

        Args:
            capabilities: words, beside those that the tasks need.

        Returns:
            How many times a handler ran.

        Raises:
            EngineError: the store cannot be used.
        """
        engine, chosen = self.engine, as_capabilities(capabilities)
        self.publish()
        inline = InlineRuntime(engine, engine.limits, self.tasks, self.middleware, chosen, schedules=True)
        return inline.run_until_idle()

    @contextmanager
    def in_memory(self) -> Iterator[Self]:
        """Lend the worker a fresh store in this process, whose clock can be set; then it has its own store again.

        Used as `with worker.in_memory():`.
        """
        with self._lent(None):
            self.engine.prepare(testing=True)
            self.publish()
            yield self

    @contextmanager
    def eager(self, *, capabilities: Iterable[str] = ()) -> Iterator[Self]:
        """Run every submission in place, on a fresh store in this process; used as `with worker.eager():`.

        `submit` and `submit_many` come back when what they submitted has ended, and what its handlers submitted too.
        Everything else is as in a worker: encoding, retries, timeouts, steps. A failure comes out of `result()`.
        Nothing is waited for: the store's clock moves forward over delays, sleeps and back-offs. Inside a handler
        `submit` comes back at once, and the work follows when the handler has ended. Of several threads that submit
        at the same time, one runs the work of all.

        Args:
            capabilities: words, beside those that the tasks need.

        Raises:
            RuntimeError: from `submit`: an execution cannot end, and why; or one makes new work for ever.
        """
        with self._lent(as_capabilities(capabilities)):
            self.publish()
            yield self

    @contextmanager
    def _lent(self, eager_capabilities: frozenset[str] | None) -> Iterator[None]:
        """Put the worker on a fresh store in this process; its own connections stay open meanwhile."""
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
            forget_memory(name)
            self.url, self._engine, self._eager_capabilities, self._lends = own


def _name_of(function: Any) -> str:
    """Return the name of a function, or of what a partial calls.

    Raises:
        TypeError: an object without a name.
    """
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", None)
    if not isinstance(name, str):
        raise TypeError(f"{function!r:.100} has no name of its own: give the task a name=.")
    return name
