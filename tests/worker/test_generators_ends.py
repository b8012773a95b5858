"""Generators whose attempt ends from outside: cancels, lost leases, stops, deadlines, and forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    ExecutionCancelled,
    ExecutionExpired,
    Interrupted,
    Run,
    Runtime,
    StreamValue,
    Worker,
    current,
)
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from flowfabric_worker.engine.types.streams import StreamCloseReason
from tests.support.servers import wait_until
from tests.support.streams import read_all, values_of
from tests.worker.conftest import Start


class Endless:
    """A generator that yields until it is closed.

    Attributes:
        begun: set when it has yielded.
        closed: the exceptions that ended it.
        left: set when its `finally` block has run.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.left = threading.Event()
        self.closed: list[type[BaseException]] = []

    def __call__(self) -> Iterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
                self.begun.set()
                current().cancelled.wait(0.01)
        except BaseException as error:
            self.closed.append(type(error))
            raise
        finally:
            self.left.set()


def by_cancel(run: Run[Any], worker: Worker, runtime: Runtime) -> None:
    run.cancel()


def by_revoking(run: Run[Any], worker: Worker, runtime: Runtime) -> None:
    worker.engine.revoke_lease(RevokeLeaseArgs(execution_id=run.id))


def by_stop(run: Run[Any], worker: Worker, runtime: Runtime) -> None:
    runtime.stop(timedelta(seconds=0.2))


def by_timeout(run: Run[Any], worker: Worker, runtime: Runtime) -> None:
    """Do nothing: the task has a timeout."""


@pytest.mark.parametrize("lose", [by_cancel, by_revoking, by_stop, by_timeout])
@pytest.mark.parametrize("interrupt", [False, True])
def test_a_generator_is_closed_when_its_attempt_ends(
    served: Worker, start: Start, lose: Callable[[Run[Any], Worker, Runtime], None], interrupt: bool
) -> None:
    endless = Endless()
    timeout = timedelta(seconds=0.5) if lose is by_timeout else None
    task = served.task(name="endless", lease=timedelta(seconds=3), timeout=timeout, interrupt=interrupt)(endless)
    runtime = start(served, threads=1)
    run = task.submit()
    assert endless.begun.wait(10)
    lose(run, served, runtime)

    assert endless.left.wait(10)
    wait_until(lambda: endless.closed, "the generator is closed")
    assert issubclass(endless.closed[0], GeneratorExit | Interrupted)


def test_the_stream_of_a_cancelled_generator_says_so_and_ends(served: Worker, start: Start) -> None:
    endless = Endless()
    task = served.task(name="endless")(endless)
    start(served)
    run = task.submit()
    reader = run.stream(timeout=10)
    first = next(reader)
    run.cancel()
    rest = list(reader)

    assert isinstance(first, StreamValue)
    assert [item.value for item in [first, *rest] if isinstance(item, StreamValue)] == list(range(1 + len(rest)))
    with pytest.raises(ExecutionCancelled):
        run.result(10)
    assert read_all(served.engine, run.id).closed_reason is StreamCloseReason.ATTEMPT_CANCELLED


def test_a_stop_lets_a_generator_finish_within_the_grace(served: Worker, start: Start) -> None:
    goes_on, begun = threading.Event(), threading.Event()

    @served.task
    def count() -> Generator[int, None, str]:
        yield 0
        begun.set()
        goes_on.wait(10)
        yield from range(1, 2000)
        return "whole"

    runtime = start(served, threads=1)
    run = count.submit()
    assert begun.wait(10)
    stopping = threading.Thread(target=runtime.stop, args=(timedelta(seconds=10),))
    stopping.start()
    goes_on.set()
    stopping.join(20)

    assert not stopping.is_alive()
    assert values_of(run) == list(range(2000))
    assert run.result(1) == "whole"


def test_an_endless_generator_expires_at_the_deadline(served: Worker, start: Start) -> None:
    task = served.task(name="endless", deadline=timedelta(seconds=0.4))(Endless())
    start(served)
    run = task.submit()

    assert len(values_of(run)) > 1
    with pytest.raises(ExecutionExpired):
        run.result(10)


def test_a_process_that_a_generator_forks_ends_where_it_yields(served: Worker, start: Start) -> None:
    @served.task
    def split() -> Generator[int, None, int]:
        child = os.fork()
        yield 1
        assert child, "the child has ended"
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    start(served, threads=1)
    run = split.submit()

    assert run.result(20) == 0
    assert values_of(run) == [1]
