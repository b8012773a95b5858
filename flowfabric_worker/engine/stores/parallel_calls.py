"""Calls to several servers in parallel, so that a server that does not answer does not delay the others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import TypeVar

from flowfabric_worker.engine.errors import EngineError

T = TypeVar("T")


def side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T | EngineError]:
    """Run all tasks in parallel, the first one in this thread; return what each returned or raised, in order."""
    if not tasks:
        return []
    others = as_they_end(tasks[1:])
    first = _outcome(tasks[0])
    outcomes = dict(others)
    return [first, *(outcomes[place] for place in range(len(tasks) - 1))]


def as_they_end(tasks: Sequence[Callable[[], T]]) -> Iterator[tuple[int, T | EngineError]]:
    """Start all tasks, each in a thread; yield the index and the outcome of each task as soon as it ends.

    A caller may stop early; the remaining tasks then end in the background.
    """
    ended: queue.SimpleQueue[tuple[int, T | EngineError | BaseException]] = queue.SimpleQueue()

    def run(place: int, task: Callable[[], T]) -> None:
        try:
            ended.put((place, _outcome(task)))
        except BaseException as error:  # noqa: BLE001  the caller's thread raises it
            ended.put((place, error))

    for place, task in enumerate(tasks):
        # Copy the context, which holds the dedicated connections of the calling thread.
        context = copy_context()
        threading.Thread(target=context.run, args=(run, place, task), name="flowfabric-call", daemon=True).start()
    return _outcomes(ended, len(tasks))


def _outcomes(
    ended: queue.SimpleQueue[tuple[int, T | EngineError | BaseException]], count: int
) -> Iterator[tuple[int, T | EngineError]]:
    for _ in range(count):
        place, outcome = ended.get()
        if isinstance(outcome, BaseException) and not isinstance(outcome, EngineError):
            raise outcome
        yield place, outcome


def all_of(outcomes: Sequence[T | EngineError]) -> list[T]:
    """Return the outcomes if none of them is an error.

    Raises:
        EngineError: the first one that is.
    """
    good: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, EngineError):
            raise outcome
        good.append(outcome)
    return good


def _outcome(task: Callable[[], T]) -> T | EngineError:
    try:
        return task()
    except EngineError as error:
        return error
