"""Handlers that do harm: other executions go on, and the faulty one ends with its own reason."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfabric_worker import Run, Task
from flowfabric_worker.engine.types.states import PublicState
from tests.support import poisoned_app
from tests.support.crew import Crew, await_workers, ends_of, opened_crew
from tests.support.servers import wait_until

COUNT = 120
WITHIN = 60.0


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with opened_crew(f"embedded://{tmp_path}/store", tmp_path) as crew:
        yield crew


def await_failure(crew: Crew, run: Run[object] | Run[str] | Run[None]) -> None:
    wait_until(lambda: run.state() is PublicState.FAILED, "it has failed", WITHIN)


def failed_among_others(crew: Crew, task: Task[[], None]) -> Run[None]:
    """Return a run that failed, while ordinary work beside it ended well."""
    runs = crew.submit_counts(COUNT)
    faulty = task.submit()

    await_failure(crew, faulty)
    crew.assert_all_ended_well(runs, WITHIN)
    return faulty


def test_a_handler_that_holds_the_interpreter_for_5_s_keeps_its_lease(crew: Crew) -> None:
    supervisor = crew.start(lease="30s")
    runs = crew.submit_counts(COUNT)
    faulty = poisoned_app.hold_interpreter.submit(5_000_000)
    others = crew.submit_counts(COUNT, first=COUNT)

    assert faulty.result(WITHIN) == "let go"
    crew.assert_all_ended_well([*runs, *others], WITHIN)
    crew.assert_all_ended_well(crew.submit_counts(COUNT, first=2 * COUNT), WITHIN, first=2 * COUNT)
    assert len(crew.pids("begin", "hold_interpreter")) == 1
    assert not ends_of(supervisor)
    assert [line for line in supervisor.log.splitlines() if "s late" in line and "hold_interpreter" in line]


def test_a_handler_that_never_frees_the_interpreter_ends_its_process(crew: Crew) -> None:
    supervisor = crew.start(lease="2s")
    faulty = poisoned_app.hold_interpreter.submit(4_000_000_000)
    runs = crew.submit_counts(COUNT)

    await_failure(crew, faulty)
    crew.assert_all_ended_well(runs, WITHIN)
    info = crew.info_of(faulty)
    assert (info.error, info.error_class) == ("reclaims_exhausted", "infra_crash")
    began = crew.pids("begin", "hold_interpreter")
    assert len(began) == len(set(began)) == 1 + poisoned_app.MAX_RECLAIMS
    for pid in began:
        supervisor.await_log(f"The worker process {pid} was silent for too long")
    wait_until(lambda: len(ends_of(supervisor)) == poisoned_app.MAX_RECLAIMS, "they have ended")
    assert set(ends_of(supervisor)) == {"killed by SIGKILL"}
    assert "runs isolated" in supervisor.log


@pytest.mark.parametrize(
    ("task", "how"),
    [
        (poisoned_app.exit_at_once, "exit code 3"),
        (poisoned_app.kill_itself, "killed by SIGKILL"),
        (poisoned_app.crash, "killed by SIGSEGV"),
    ],
    ids=lambda value: value.name if isinstance(value, Task) else "",
)
def test_a_handler_that_kills_its_process_is_isolated_and_fails_with_why(
    crew: Crew, task: Task[[], None], how: str
) -> None:
    supervisor = crew.start(lease="2s")

    faulty = failed_among_others(crew, task)

    assert_exhausted(crew, faulty, task.name.rpartition(".")[2], how)
    assert supervisor.log.count(f"{task.name} of {faulty.id.plain} runs isolated") == poisoned_app.MAX_RECLAIMS - 1
    # It costs its worker twice, and then a process that does nothing else; the count is kept.
    await_workers(supervisor, 2 + poisoned_app.MAX_RECLAIMS)
    assert len(supervisor.children()) == 2


def assert_exhausted(crew: Crew, run: Run[object] | Run[str] | Run[None], name: str, how: str) -> None:
    """Assert that the execution failed because its processes died, and that each attempt says how."""
    info = crew.info_of(run)
    assert (info.error, info.error_class) == ("reclaims_exhausted", "infra_crash")
    assert info.error_detail.decode().endswith(f": {how}")
    assert len(info.past_attempts) == poisoned_app.MAX_RECLAIMS
    for past in info.past_attempts:
        assert past.error == f"worker {past.worker_instance_id}: {how}"
    began = crew.pids("begin", name)
    assert len(began) == len(set(began)) == 1 + poisoned_app.MAX_RECLAIMS


def test_an_endless_handler_is_timed_out_and_its_process_replaced_in_order(crew: Crew) -> None:
    supervisor = crew.start()

    faulty = failed_among_others(crew, poisoned_app.never_end)

    assert_timed_out(crew, faulty, "never_end")
    began = set(crew.pids("begin", "never_end"))
    wait_until(lambda: len(ends_of(supervisor)) >= len(began), "the processes with lost threads have ended", WITHIN)
    assert ends_of(supervisor) == ["exit code 7"] * len(began)
    await_workers(supervisor, 2 + len(began))
    assert began.isdisjoint(supervisor.children())
    crew.assert_all_ended_well(crew.submit_counts(COUNT, first=COUNT), WITHIN, first=COUNT)


def test_an_endless_interruptible_handler_costs_no_thread_and_no_process(crew: Crew) -> None:
    supervisor = crew.start()

    faulty = failed_among_others(crew, poisoned_app.never_end_unless_interrupted)

    assert_timed_out(crew, faulty, "never_end_unless_interrupted")
    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert supervisor.log.count("was interrupted: timeout") == poisoned_app.ATTEMPTS
    assert not ends_of(supervisor)
    assert "its stuck thread is replaced" not in supervisor.log


def assert_timed_out(crew: Crew, run: Run[None], name: str) -> None:
    """Assert that each attempt ended by its timeout."""
    info = crew.info_of(run)
    assert (info.error, info.error_class) == ("attempt_timeout", "timeout")
    assert [(past.error, past.error_class) for past in info.past_attempts] == [("attempt_timeout", "timeout")]
    assert info.retry_count == poisoned_app.ATTEMPTS - 1
    assert len(crew.pids("begin", name)) == poisoned_app.ATTEMPTS


@pytest.mark.parametrize("at_a_time", [poisoned_app.MEGABYTE, 1000])
def test_a_handler_that_allocates_without_end_fails_by_itself(crew: Crew, at_a_time: int) -> None:
    supervisor = crew.start("--memory-limit", "300MB")
    runs = crew.submit_counts(COUNT)
    faulty = poisoned_app.allocate_without_end.submit(at_a_time)
    others = crew.submit_counts(COUNT, first=COUNT)

    await_failure(crew, faulty)
    crew.assert_all_ended_well([*runs, *others], WITHIN)
    info = crew.info_of(faulty)
    assert (info.error, info.error_class) == ("MemoryError: ", "transient")
    assert [past.error for past in info.past_attempts] == ["MemoryError: "]
    assert len(crew.pids("begin", "allocate_without_end")) == poisoned_app.ATTEMPTS
    assert not ends_of(supervisor)


def test_a_process_that_leaks_is_replaced_in_order_before_it_fails(crew: Crew) -> None:
    supervisor = crew.start("--memory-limit", "300MB", processes=1)
    leaks = poisoned_app.leak.submit_many((20,) for _ in range(20))
    runs = crew.submit_counts(COUNT)

    assert [leak.result(WITHIN) for leak in leaks] == [20] * 20
    crew.assert_all_ended_well(runs, WITHIN)
    assert set(ends_of(supervisor)) == {"exit code 7"}


@pytest.mark.parametrize("name", poisoned_app.EXCEPTIONS)
def test_whatever_a_handler_raises_is_a_failure_like_any_other(crew: Crew, name: str) -> None:
    supervisor = crew.start(processes=1)
    runs = crew.submit_counts(COUNT)
    faulty = poisoned_app.raise_something.submit(name)

    await_failure(crew, faulty)
    crew.assert_all_ended_well(runs, WITHIN)
    info = crew.info_of(faulty)
    assert (info.error or "").startswith(f"{name}: ")
    assert info.error_class == "transient"
    assert len(crew.pids("begin", name)) == poisoned_app.ATTEMPTS
    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert not ends_of(supervisor)


def test_work_goes_on_after_a_handler_closed_every_file(crew: Crew) -> None:
    crew.start()
    runs = crew.submit_counts(COUNT)
    faulty = poisoned_app.close_every_file.submit()
    others = crew.submit_counts(COUNT, first=COUNT)

    crew.assert_all_ended_well([*runs, *others], WITHIN)
    wait_until(lambda: faulty.state() in (PublicState.COMPLETED, PublicState.FAILED), "it has ended", WITHIN)
    crew.assert_all_ended_well(crew.submit_counts(COUNT, first=2 * COUNT), WITHIN, first=2 * COUNT)


def test_a_worker_stops_in_spite_of_threads_that_a_handler_left_running(crew: Crew) -> None:
    supervisor = crew.start("--grace", "2s", processes=1)
    left = poisoned_app.leave_a_thread_and_a_process_behind.submit().result(WITHIN)

    supervisor.signal(signal.SIGTERM)

    try:
        assert supervisor.wait() == 0
    finally:
        os.kill(left, signal.SIGKILL)


def test_ten_tasks_that_kill_their_process_delay_good_work_for_seconds(crew: Crew) -> None:
    supervisor = crew.start(lease="2s", processes=4)
    faulty = poisoned_app.kill_itself.submit_many([()] * 10)
    runs = crew.submit_counts(2 * COUNT)
    began = time.monotonic()
    crew.assert_all_ended_well(runs, WITHIN)
    took = time.monotonic() - began
    for run in faulty:
        await_failure(crew, run)

    assert took < 60
    # Each costs a worker at most twice, and then a process that does nothing else.
    assert len(ends_of(supervisor)) <= 2 * len(faulty)
    assert len(supervisor.children()) == 4


def test_a_suspect_that_goes_on_and_on_stops_no_other_work_of_its_process(crew: Crew) -> None:
    crew.start(processes=1, lease="2s")
    suspect = poisoned_app.last.submit(1_000_000, 8.0)
    for times in (1, 2):
        (pid, *_) = wait_until(
            lambda times=times: (begun := crew.pids("begin", 1_000_000)) and len(begun) == times and begun[::-1],
            "it has begun", WITHIN,
        )  # fmt: skip
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(crew.pids("begin", 1_000_000)) == 3, "it has begun as a suspect", WITHIN)
    crew.assert_all_ended_well(crew.submit_counts(COUNT), WITHIN)

    assert suspect.state() is PublicState.ACTIVE
    assert suspect.result(WITHIN) == 1_000_000
    assert crew.info_of(suspect).reclaim_count == 2
