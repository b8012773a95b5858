"""Middleware: context managers around the handlers of a worker, and hooks that are called for its executions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import attrs

from flowfabric_worker.context import TaskContext


@attrs.frozen(kw_only=True)
class AttemptEvent:
    """An event in the life of one attempt.

    Attributes:
        execution_id: the execution's id, as text.
        task: the task's name.
        lane: the lane of the execution.
        attempt: the number of the attempt, from 0.
        retry_count: the number of retries before this attempt.
        tags: the tags of the execution.
        seconds: how long the handler ran; None if it has not started or not ended.
        error: why the attempt failed, was lost, or was stopped by a budget, or which limit was passed, in one line;
            else empty.
        outcome: for `on_ended`, how the execution ended: completed, failed, cancelled or expired; else empty.
        budget: the budget that stopped the attempt, or whose soft limit was passed; else empty.
    """

    execution_id: str
    task: str
    lane: str
    attempt: int
    retry_count: int
    tags: Mapping[str, str]
    seconds: float | None = None
    error: str = ""
    outcome: str = ""
    budget: str = ""


class Middleware:
    """Behaviour that all tasks of a worker share. Override the methods that you need; the others cost nothing.

    `around` runs in the handler's thread. All hooks run one after the other in one separate thread, after the store
    has acknowledged the event. An exception of a hook is logged, and has no other effect. No other thread waits for a
    hook: up to 10,000 events are queued, then the oldest are dropped, and the number of dropped events is logged.
    """

    def around(self, context: TaskContext) -> AbstractContextManager[object]:  # noqa: ARG002  for overriding methods
        """Return a context manager that the handler runs in.

        An exception of the context manager counts as an exception of the handler. The context manager cannot suppress
        an exception of the handler. The interruption of a task with `interrupt=True` is raised only in the handler.
        """
        return nullcontext()

    def on_claim(self, event: AttemptEvent) -> None:
        """Handle the claim of an execution by this worker."""

    def on_success(self, event: AttemptEvent) -> None:
        """Handle the success of an execution."""

    def on_failure(self, event: AttemptEvent) -> None:
        """Handle the failure of an execution, or its cancellation by its handler; no retry follows."""

    def on_retry(self, event: AttemptEvent) -> None:
        """Handle the failure of an attempt that is followed by a retry."""

    def on_suspend(self, event: AttemptEvent) -> None:
        """Handle the suspension of an attempt whose handler runs again later.

        It sleeps or waits, or a budget has reached its hard limit: then `event.budget` is the budget.
        """

    def on_soft_limit(self, event: AttemptEvent) -> None:
        """Handle that a handler's use of `event.budget` passed a soft limit, once per period of the budget.

        The use of one handler passes a limit, whichever worker runs it, so only the hooks of that worker are called.
        A settlement above a hard limit counts too. `event.error` tells the limit.
        """

    def on_lost(self, event: AttemptEvent) -> None:
        """Handle an attempt whose result will not count: lease lost, timeout, deadline, or cancelled from outside."""

    def on_ended(self, event: AttemptEvent) -> None:
        """Handle the end of an execution that this worker had claimed; `event.outcome` says how it ended.

        This includes timeouts and deadlines, cancellations from outside, and executions that fail because their
        workers were lost too often.
        """


Around: TypeAlias = Callable[[TaskContext], AbstractContextManager[object]]
"""Returns the context manager that a handler runs in."""


def arounds_of(middleware: tuple[Middleware | Around, ...]) -> tuple[Around, ...]:
    """Return the functions that create the context managers around a handler, the outermost first."""
    return tuple(
        each.around if isinstance(each, Middleware) else each
        for each in middleware
        if not isinstance(each, Middleware) or type(each).around is not Middleware.around
    )


def hooks_of(middleware: tuple[Middleware | Around, ...], name: str) -> tuple[Callable[[AttemptEvent], None], ...]:
    """Return the hooks with a name, such as `on_claim`, that the middleware overrides."""
    return tuple(
        getattr(each, name)
        for each in middleware
        if isinstance(each, Middleware) and getattr(type(each), name) is not getattr(Middleware, name)
    )


def check_middleware(middleware: object) -> tuple[Middleware | Around, ...]:
    """Check a collection of middleware, and return it as a tuple.

    Raises:
        TypeError: it is not a collection, or an item is a class or cannot be called.
    """
    if isinstance(middleware, Middleware) or not hasattr(middleware, "__iter__"):
        raise TypeError(f"middleware must be a collection, such as [Timing()], not {middleware!r}")
    each_one = tuple(middleware)
    for each in each_one:
        if isinstance(each, type):
            raise TypeError(f"middleware takes objects: write {each.__name__}() instead of {each.__name__}")
        if not (isinstance(each, Middleware) or callable(each)):
            raise TypeError(
                f"each middleware must be a Middleware, or a function that returns a context manager, not {each!r}"
            )
    return each_one
