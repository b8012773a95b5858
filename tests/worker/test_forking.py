"""Workers and clients that are used after a fork, as servers of web applications do it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowfabric_worker import Client, TaskContext, Worker
from tests.worker.conftest import Another, Start


def in_child(act: Callable[[], object]) -> int:
    """Do something in a forked process; return its exit code: 0 if it went well."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException as error:  # noqa: BLE001  nothing of this process may go on behind the test
            sys.stderr.write(repr(error))
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def producer(another: Another, start: Start) -> Worker:
    """Provide a worker that has submitted, waited and claimed before the fork; another one does the work."""
    other = another()
    other.task(name="add")(lambda a, b: a + b)
    start(other)
    worker = another()
    worker.task(name="add")(lambda a, b: a + b)
    assert worker.tasks["add"].submit(1, 2).result(10) == 3
    return worker


def test_a_forked_process_submits_and_waits_by_connections_of_its_own(producer: Worker) -> None:
    add = producer.tasks["add"]

    def act() -> None:
        for number in range(50):
            assert add.submit(number, 1).result(10) == number + 1

    assert in_child(act) == 0
    assert add.submit(2, 3).result(10) == 5


def test_parent_and_children_submit_at_once_and_get_their_own_answers(producer: Worker) -> None:
    add = producer.tasks["add"]

    def act() -> None:
        children = []
        for base in (100, 200):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if sums(base) else 1)
            children.append(pid)
        assert sums(300)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]

    def sums(base: int) -> bool:
        return [add.submit(base, number).result(10) for number in range(40)] == [base + n for n in range(40)]

    assert in_child(act) == 0
    assert sums(400)


def test_a_client_works_after_a_fork(producer: Worker, served_url: str) -> None:
    with Client(served_url) as client:
        assert client.submit("add", [1, 1]).result(10) == 2

        def act() -> None:
            assert client.submit("add", [2, 2]).result(10) == 4

        assert in_child(act) == 0
        assert client.submit("add", [3, 3]).result(10) == 6


def test_what_a_forked_process_closes_stays_open_in_its_parent(producer: Worker) -> None:
    run = producer.tasks["add"].submit(1, 1)

    assert in_child(producer.close) == 0
    assert run.result(10) == 2


def test_a_process_forked_in_a_middleware_ends_there_and_runs_no_handler(
    another: Another, start: Start, tmp_path: Path
) -> None:
    journal, codes = tmp_path / "journal", list[int]()

    @contextmanager
    def forking(_: TaskContext) -> Iterator[None]:
        pid = os.fork()
        if pid:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        yield

    worker = another(forking)

    @worker.task
    def note() -> None:
        with journal.open("a") as file:
            file.write(f"{os.getpid()}\n")

    run = note.submit()
    start(worker, threads=1)
    run.result(10)

    assert codes == [0]
    assert journal.read_text() == f"{os.getpid()}\n"
