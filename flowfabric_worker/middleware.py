"""What goes around every handler of a worker, and what is told of each execution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import attrs

from flowfabric_worker.context import TaskContext


@attrs.frozen(kw_only=True)
class AttemptEvent:
    """Something that happened to one run of an execution.

    Attributes:
        execution_id: which one, as text.
        task: its task's name.
        lane: the lane that it came from.
        attempt: the number of its attempt, from 0.
        retry_count: retries made before this attempt.
        tags: its tags.
        seconds: how long its handler ran; None if it did not begin or has not ended.
        error: why it failed or was lost, in one line; empty where nothing went wrong.
        outcome: of `on_ended`, how the execution ended: completed, failed, cancelled or expired; empty elsewhere.
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


class Middleware:
    """Behaviour that all tasks of a worker share. Override what is wanted; the rest costs nothing.

    `around` runs in the handler's thread. The hooks run one after the other in a thread of their own, once the store
    has acknowledged what they tell of. What a hook raises is logged, and changes nothing. Nothing waits for a hook: up
    to 10,000 events are kept for those that cannot keep up, then the oldest are dropped, and the log says how many.
    """

    def around(self, context: TaskContext) -> AbstractContextManager[object]:  # noqa: ARG002  for who overrides it
        """Return a context manager that the handler runs in.

        What it raises counts as raised by the handler. It cannot swallow what the handler raised: that counts too. The
        interruption of a task with `interrupt=True` reaches the handler alone.
        """
        return nullcontext()

    def on_claim(self, event: AttemptEvent) -> None:
        """The worker has claimed an execution."""

    def on_success(self, event: AttemptEvent) -> None:
        """An execution has completed."""

    def on_failure(self, event: AttemptEvent) -> None:
        """An execution has ended failed, or its handler has cancelled it; it is not tried again."""

    def on_retry(self, event: AttemptEvent) -> None:
        """An attempt has failed and is tried again."""

    def on_suspend(self, event: AttemptEvent) -> None:
        """A handler has left its execution to go on later: it sleeps or waits."""

    def on_lost(self, event: AttemptEvent) -> None:
        """What a run returns will not count: its lease was lost, its time is over, or somebody cancelled it."""

    def on_ended(self, event: AttemptEvent) -> None:
        """An execution that this worker had has ended, in whatever way; `event.outcome` says how.

        Beside what its handler brought about, these are timeouts and deadlines, cancellations from outside, and
        executions that are given up because their workers were lost too often.
        """


Around: TypeAlias = Callable[[TaskContext], AbstractContextManager[object]]
"""Makes the context manager that a handler runs in."""


def arounds_of(middleware: tuple[Middleware | Around, ...]) -> tuple[Around, ...]:
    """Return what goes around a handler, the outermost first."""
    return tuple(
        each.around if isinstance(each, Middleware) else each
        for each in middleware
        if not isinstance(each, Middleware) or type(each).around is not Middleware.around
    )


def hooks_of(middleware: tuple[Middleware | Around, ...], name: str) -> tuple[Callable[[AttemptEvent], None], ...]:
    """Return the hooks of a name that somebody overrides."""
    return tuple(
        getattr(each, name)
        for each in middleware
        if isinstance(each, Middleware) and getattr(type(each), name) is not getattr(Middleware, name)
    )


def check_middleware(middleware: object) -> tuple[Middleware | Around, ...]:
    """Return a collection of middleware.

    Raises:
        TypeError: one of them is a class, or cannot be called.
    """
    if isinstance(middleware, Middleware) or not hasattr(middleware, "__iter__"):
        raise TypeError(f"middleware is a collection, such as [Timing()], not {middleware!r}")
    each_one = tuple(middleware)
    for each in each_one:
        if isinstance(each, type):
            raise TypeError(f"middleware takes objects: write {each.__name__}() instead of {each.__name__}")
        if not (isinstance(each, Middleware) or callable(each)):
            raise TypeError(f"middleware is a Middleware, or a function that returns a context manager, not {each!r}")
    return each_one
