"""Tasks that run by themselves: their options, and the threads that submit their ticks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import TaskContext, Worker
from flowfabric_worker._runtime.ticker import Ticker
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError, ResourceExhaustedError, TransportError
from flowfabric_worker.engine.types.schedules import TickScheduleArgs, TickScheduleResult
from flowfabric_worker.schedule import Schedule
from tests.support.tickers import MINUTE, SECOND, START, Counting, beating, rows, scheduler_of, ticks_of


@pytest.fixture
def move(worker: Worker) -> Callable[[timedelta], None]:
    """Set the clock of the worker's store, which stands at the start, forward."""
    now = START
    worker.engine.set_clock(now)

    def move(duration: timedelta) -> None:
        nonlocal now
        now += duration
        worker.engine.set_clock(now)

    return move


# At the decorator


def test_a_task_tells_its_schedule(worker: Worker) -> None:
    @worker.task(cron="*/5 * * * *", timezone="Europe/Berlin")
    def report(context: TaskContext, day: str = "today") -> None: ...

    @worker.task
    def plain(order: int) -> None: ...

    assert report.schedule == Schedule(cron="*/5 * * * *", timezone="Europe/Berlin")
    assert plain.schedule is None
    assert Ticker(worker.engine, [plain]).tick() is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": timedelta(milliseconds=10)}, "a second to a century"),
        ({"every": MINUTE, "cron": "* * * * *"}, "either every= or cron="),
        ({"cron": "never"}, "5 fields"),
        ({"cron": "* * * * *", "timezone": "Nowhere"}, "Nowhere"),
        ({"cron": "* * * * *", "missed": "some"}, "latest, all, none"),
        ({"missed": "all"}, "every= or cron="),
        ({"every": MINUTE, "key": "k"}, "key="),
        ({"every": MINUTE, "at": START}, "at="),
    ],
)
def test_an_impossible_schedule_is_refused_at_the_decorator(worker: Worker, options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        worker.task(**options)(lambda: None)

    assert not worker.tasks


def test_a_task_that_needs_arguments_cannot_have_a_schedule(worker: Worker) -> None:
    with pytest.raises(TypeError, match="give to a default"):

        @worker.task(every=MINUTE)
        def send(context: TaskContext, to: str) -> None: ...


def test_a_schedule_belongs_to_the_task(worker: Worker) -> None:
    beating(worker)

    with pytest.raises(TypeError, match="every can only be set on the task"):
        worker.tasks["beat"].options(every=MINUTE)


def test_a_task_with_a_schedule_can_be_called_and_submitted_too(worker: Worker) -> None:
    @worker.task(every=MINUTE)
    def double(number: int = 2) -> int:
        return 2 * number

    assert double() == 4
    assert double.submit(4).state() == "waiting"


# In the caller's thread


def test_a_round_tells_when_the_next_tick_comes(worker: Worker, move: Callable[[timedelta], None]) -> None:
    beating(worker)
    scheduler = scheduler_of(worker)

    assert scheduler.tick() == 60
    move(45 * SECOND)
    assert scheduler.tick() == 15
    move(15 * SECOND)
    assert scheduler.tick() == 60
    assert ticks_of(worker.engine) == ["2030-01-01T00:01:00Z"]


def test_a_tick_has_the_options_of_its_task(worker: Worker, move: Callable[[timedelta], None]) -> None:
    beating(worker, lane="night", priority=5, tags={"color": "red"}, timeout=SECOND)
    scheduler = scheduler_of(worker)
    scheduler.tick()
    move(MINUTE)
    scheduler.tick()

    (row,) = worker.engine.list_executions().executions
    info = worker.engine.read_execution_info(row.execution_id)
    assert info is not None
    assert (info.lane, info.task, info.priority, info.policy.attempt_timeout) == ("night", "beat", 5, SECOND)
    assert info.tags == {"color": "red", "schedule": "beat", "tick": "2030-01-01T00:01:00Z"}


@pytest.mark.parametrize(("missed", "expected"), [("latest", [3]), ("all", [1, 2, 3]), ("none", [])])
def test_a_returning_scheduler_handles_missed_ticks_as_configured(
    worker: Worker, move: Callable[[timedelta], None], missed: str, expected: list[int]
) -> None:
    beating(worker, missed=missed)
    scheduler_of(worker).tick()
    move(3 * MINUTE + 45 * SECOND)

    scheduler_of(worker).tick()

    assert ticks_of(worker.engine) == [f"2030-01-01T00:0{minute}:00Z" for minute in expected]


@pytest.mark.parametrize("missed", ["latest", "all", "none"])
def test_a_round_that_comes_late_submits_every_tick_that_was_not_missed(
    worker: Worker, move: Callable[[timedelta], None], missed: str
) -> None:
    beating(worker, every=SECOND, missed=missed)
    scheduler = scheduler_of(worker)
    scheduler.tick()
    move(4 * SECOND)

    scheduler.tick()

    assert ticks_of(worker.engine) == [f"2030-01-01T00:00:0{second}Z" for second in (1, 2, 3, 4)]


def test_missed_ticks_are_counted_and_logged(
    worker: Worker, move: Callable[[timedelta], None], caplog: pytest.LogCaptureFixture
) -> None:
    beating(worker)
    beating(worker, name="quiet", missed="none")
    scheduler = scheduler_of(worker)
    scheduler.tick()
    move(3 * MINUTE + 45 * SECOND)

    scheduler.tick()

    assert {name: row.missed_ticks for name, row in rows(worker.engine).items()} == {"beat": 2, "quiet": 3}
    assert "beat missed 2 tick(s)" in caplog.text
    assert "quiet missed 3 tick(s), because no worker ran within 30 s of them; none of them runs" in caplog.text


def test_many_schedules_are_served_by_few_calls(worker: Worker, move: Callable[[timedelta], None]) -> None:
    for number in range(40):
        beating(worker, name=f"beat{number}")
    engine = Counting(lambda: (worker.engine.store, None))
    scheduler = Ticker(engine, worker.tasks.values())
    scheduler.tick()
    engine.calls = 0
    move(MINUTE)

    scheduler.tick()

    assert len(engine.list_executions(limit=1000).executions) == 40
    assert engine.calls <= 3


def test_a_paused_schedule_goes_on_from_when_it_is_resumed(worker: Worker, move: Callable[[timedelta], None]) -> None:
    beating(worker, missed="all")
    scheduler = scheduler_of(worker)
    scheduler.tick()
    worker.engine.pause_schedule("beat")
    for _ in range(3):
        move(MINUTE)
        assert scheduler.tick() == 60
    worker.engine.resume_schedule("beat")
    scheduler.tick()
    move(MINUTE)
    scheduler.tick()

    assert ticks_of(worker.engine) == ["2030-01-01T00:04:00Z"]


def test_a_removed_schedule_comes_back_with_a_worker_that_has_it(
    worker: Worker, move: Callable[[timedelta], None]
) -> None:
    beating(worker)
    scheduler = scheduler_of(worker)
    scheduler.tick()
    worker.engine.remove_schedule("beat")
    move(MINUTE)
    scheduler.tick()
    move(MINUTE)
    scheduler.tick()

    assert ticks_of(worker.engine) == ["2030-01-01T00:02:00Z"]


def test_a_changed_schedule_is_stored_when_its_worker_starts(worker: Worker, move: Callable[[timedelta], None]) -> None:
    beating(worker)
    scheduler_of(worker).tick()
    changed = Worker("shop", worker.url)
    beating(changed, every=None, cron="30 * * * *", lane="other")
    move(MINUTE)
    scheduler_of(changed).tick()
    changed.close()

    row = rows(worker.engine)["beat"]
    assert (row.spec, row.lane) == ("cron 30 * * * * UTC", "other")
    assert row.last_tick_ms == row.first_seen_ms
    assert row.next_tick_ms == int((START + 30 * MINUTE).timestamp() * 1000)


class Refusing(Engine):
    """An engine that refuses the ticks of one schedule."""

    def tick_schedules(self, args: Sequence[TickScheduleArgs]) -> list[TickScheduleResult | EngineError]:
        answers = iter(super().tick_schedules([each for each in args if each.name != "bad"]))
        return [ResourceExhaustedError("too_many_classes") if each.name == "bad" else next(answers) for each in args]


def test_a_schedule_that_is_refused_keeps_no_other_from_ticking(
    worker: Worker, move: Callable[[timedelta], None]
) -> None:
    beating(worker, name="bad")
    beating(worker)
    engine = Refusing(lambda: (worker.engine.store, None))
    scheduler = Ticker(engine, worker.tasks.values())

    for _ in range(2):
        with pytest.raises(EngineError, match="kinds"):
            scheduler.tick()
        move(MINUTE)

    assert ticks_of(worker.engine) == ["2030-01-01T00:01:00Z"]


def test_a_round_without_a_store_reports_the_error() -> None:
    worker = Worker("shop", "unix:///nowhere/at/all.sock")
    beating(worker)
    worker.engine.retry_for = 0

    with pytest.raises(TransportError):
        scheduler_of(worker).tick()


def test_a_worker_without_schedules_has_no_ticker_thread(worker: Worker) -> None:
    worker.task(name="plain")(lambda: None)
    scheduler = scheduler_of(worker)

    scheduler.start()
    scheduler.stop()

    assert scheduler.alive
    assert scheduler.join(1)
    assert "flowfabric-ticker" not in {thread.name for thread in threading.enumerate()}
