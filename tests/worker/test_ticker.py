"""Tasks that run by themselves: their options, and the threads that submit their ticks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from flowfabric_worker import TaskContext, Worker
from flowfabric_worker._runtime.ticker import Ticker
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError, ResourceExhaustedError, TransportError
from flowfabric_worker.engine.types.schedules import ScheduleInfo, TickScheduleArgs, TickScheduleResult
from flowfabric_worker.schedule import Schedule
from tests.support.servers import ValkeyServer, running, wait_until
from tests.worker.conftest import Another, Start

START = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


def scheduler_of(worker: Worker) -> Ticker:
    return Ticker(worker.engine, worker.tasks.values())


def ticks_of(engine: Engine, name: str = "beat") -> list[str]:
    """Return the ticks that were submitted of a schedule."""
    rows = engine.list_executions(limit=1000).executions
    return sorted(row.tags["tick"] for row in rows if row.tags.get("schedule") == name)


def rows(engine: Engine) -> dict[str, ScheduleInfo]:
    """Return the schedules by name."""
    return {row.name: row for row in engine.list_schedules().schedules if isinstance(row, ScheduleInfo)}


def beating(worker: Worker, **options: Any) -> None:
    """Give a worker the task `beat`."""

    @worker.task(**{"name": "beat", "every": MINUTE, **options})
    def beat() -> None: ...


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


@pytest.fixture
def begin() -> Iterator[Callable[[Ticker], Ticker]]:
    """Start schedulers; they are stopped when the test ends."""
    started: list[Ticker] = []

    def begin(scheduler: Ticker) -> Ticker:
        scheduler.start()
        started.append(scheduler)
        return scheduler

    yield begin
    for scheduler in started:
        scheduler.stop()
    assert all(scheduler.join(10) for scheduler in started)


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
def test_a_schedule_that_cannot_be_is_refused_where_it_is_written(
    worker: Worker, options: dict[str, Any], said: str
) -> None:
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
def test_who_comes_back_makes_up_for_what_was_missed_as_the_task_says(
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


def test_what_was_missed_is_counted_and_told(
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


class Counting(Engine):
    """An engine that counts the calls that schedules cost."""

    calls = 0

    def call(self, function: str, *rest: Any) -> Any:
        self.calls += 1
        return super().call(function, *rest)


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


def test_what_a_schedule_is_now_is_told_when_its_worker_comes(
    worker: Worker, move: Callable[[timedelta], None]
) -> None:
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


def test_without_a_store_a_round_says_so() -> None:
    worker = Worker("shop", "unix:///nowhere/at/all.sock")
    beating(worker)
    worker.engine.retry_for = 0

    with pytest.raises(TransportError):
        scheduler_of(worker).tick()


def test_without_a_schedule_there_is_no_thread(worker: Worker) -> None:
    worker.task(name="plain")(lambda: None)
    scheduler = scheduler_of(worker)

    scheduler.start()
    scheduler.stop()

    assert scheduler.alive
    assert scheduler.join(1)
    assert "flowfabric-ticker" not in {thread.name for thread in threading.enumerate()}


# Several at once


def test_three_schedulers_submit_each_of_twenty_ticks_once(another: Another) -> None:
    workers = [another() for _ in range(3)]
    workers[0].engine.prepare(testing=True)
    for worker in workers:
        beating(worker)
    now = START
    workers[0].engine.set_clock(now)
    moved = threading.Barrier(4)
    ticked = threading.Barrier(4)

    def serve(worker: Worker) -> None:
        scheduler = scheduler_of(worker)
        for _ in range(21):
            moved.wait(30)
            scheduler.tick()
            ticked.wait(30)

    threads = [threading.Thread(target=serve, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for _ in range(21):
        moved.wait(30)
        ticked.wait(30)
        now += MINUTE
        workers[0].engine.set_clock(now)
    for thread in threads:
        thread.join(30)

    assert ticks_of(workers[0].engine) == [f"2030-01-01T00:{minute:02}:00Z" for minute in range(1, 21)]


def test_threads_tick_by_the_clock_of_the_store_each_tick_once(
    another: Another, begin: Callable[[Ticker], Ticker]
) -> None:
    workers = [another() for _ in range(3)]
    for worker in workers:
        beating(worker, every=SECOND)
        begin(scheduler_of(worker))
    engine = workers[0].engine

    found = wait_until(lambda: len(ticks_of(engine)) >= 3 and ticks_of(engine), "three ticks")

    moments = [datetime.fromisoformat(tick) for tick in found]
    assert len(set(moments)) == len(moments)
    assert all(moment.microsecond == 0 for moment in moments)
    assert moments[-1].timestamp() * 1000 <= engine.server_time()


def test_a_clock_of_the_store_that_is_far_from_ours_does_not_matter(
    worker: Worker, begin: Callable[[Ticker], Ticker]
) -> None:
    beating(worker, every=SECOND)
    worker.engine.set_clock(START)
    scheduler_of(worker).tick()
    worker.engine.set_clock(START + SECOND)

    scheduler = begin(scheduler_of(worker))

    wait_until(lambda: ticks_of(worker.engine) == ["2030-01-01T00:00:01Z"], "the tick")
    assert scheduler.alive


def test_a_scheduler_survives_a_store_that_goes_away(begin: Callable[[Ticker], Ticker]) -> None:
    with running(ValkeyServer()) as server:
        worker = Worker("shop", f"{server.url}?prefix=t{uuid4().hex[:12]}")
        worker.engine.retry_for = 0
        beating(worker, every=SECOND)
        scheduler = begin(scheduler_of(worker))
        wait_until(lambda: ticks_of(worker.engine), "a tick")
        before = len(ticks_of(worker.engine))
        server.kill()
        wait_until(lambda: not server.answers(), "the server is gone")
        server.start()

        wait_until(lambda: len(ticks_of(worker.engine)) > before, "another tick")

        assert scheduler.alive
        scheduler.stop()
        assert scheduler.join(10)
        worker.close()


def test_one_process_submits_and_the_others_stand_by(another: Another, begin: Callable[[Ticker], Ticker]) -> None:
    workers = [another() for _ in range(3)]
    engines = [Counting(lambda worker=worker: (worker.engine.store, None)) for worker in workers]
    for worker, engine in zip(workers, engines, strict=True):
        beating(worker, every=SECOND)
        begin(Ticker(engine, worker.tasks.values()))

    wait_until(lambda: len(ticks_of(workers[0].engine)) >= 3, "three ticks")

    assert sorted(engine.calls for engine in engines)[:2] == [1, 1]


@pytest.mark.parametrize("resigns", [False, True])
def test_another_process_takes_over_when_the_leader_is_gone(
    another: Another, begin: Callable[[Ticker], Ticker], monkeypatch: pytest.MonkeyPatch, resigns: bool
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.ticker.LEADS_FOR", SECOND)
    workers = [another(), another()]
    for worker in workers:
        beating(worker, every=SECOND)
    leader = begin(scheduler_of(workers[0]))
    wait_until(lambda: rows(workers[0].engine), "the leader leads")
    begin(scheduler_of(workers[1]))
    if not resigns:
        monkeypatch.setattr(leader, "_resign", lambda: None)
    leader.stop()
    assert leader.join(10)
    before = len(ticks_of(workers[0].engine))

    ticks = wait_until(
        lambda: len(found := ticks_of(workers[0].engine)) >= before + 3 and found, "three more", timeout=20
    )

    moments = [datetime.fromisoformat(tick) for tick in ticks]
    assert {later - earlier for earlier, later in pairwise(moments)} == {SECOND}


def test_two_workers_run_each_tick_once(another: Another, start: Start, begin: Callable[[Ticker], Ticker]) -> None:
    ran: list[str] = []
    workers = [another(), another()]
    for worker in workers:

        @worker.task(every=SECOND)
        def beat(context: TaskContext) -> None:
            ran.append(context.tags["tick"])

        start(worker)
        # A second one beside that of the runtime changes nothing.
        begin(scheduler_of(worker))

    wait_until(lambda: len(ran) >= 3, "three runs")

    assert len(set(ran)) == len(ran)
