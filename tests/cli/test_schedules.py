"""The command `schedules`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from flowfabric_worker import Worker
from flowfabric_worker._runtime.ticker import Ticker
from tests.support.cli import cli, ok, on_terminal, without_escapes

pytestmark = pytest.mark.usefixtures("url")

START = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture
def worker(url: str) -> Iterator[Worker]:
    worker = Worker("application", url)
    yield worker
    worker.close()


@pytest.fixture
def beat(worker: Worker) -> Ticker:
    """Provide a scheduler of the task `beat`, which runs every five minutes; the store knows it."""

    @worker.task(name="beat", cron="*/5 * * * *", timezone="Europe/Berlin")
    def beat() -> None: ...

    scheduler = Ticker(worker.engine, worker.tasks.values())
    scheduler.tick()
    return scheduler


@pytest.mark.usefixtures("beat")
def test_schedules_lists_specs_and_the_next_ticks() -> None:
    headers, row = ok("schedules").out.splitlines()

    assert headers.split() == ["NAME", "SPEC", "TASK", "LAST", "NEXT", "MISSED", "STATE"]
    assert row.startswith("beat  cron */5 * * * * Europe/Berlin  beat  never  in ")
    assert row.endswith("on")
    document = ok("schedules", "--json").document
    assert (document["name"], document["spec"]) == ("beat", "cron */5 * * * * Europe/Berlin")
    assert document["submitted_tick_ms"] is None


def test_schedules_shows_the_last_tick_and_late_schedules(worker: Worker) -> None:
    engine = worker.engine
    engine.prepare(testing=True)

    @worker.task(name="beat", every=SECOND)
    def beat() -> None: ...

    scheduler = Ticker(engine, worker.tasks.values())
    for moment in (START, START + SECOND):
        engine.set_clock(moment)
        scheduler.tick()
    engine.set_clock(START + SECOND + timedelta(hours=2))

    row = ok("schedules", "list", "beat").out.splitlines()[1]

    assert row.split() == [
        "beat",
        "every",
        "1s",
        "beat",
        "2h",
        "ago",
        "now",
        "0",
        "late",
        "by",
        "1h:",
        "no",
        "worker",
        "submits",
        "it",
    ]


@pytest.mark.usefixtures("beat")
def test_schedules_pauses_and_resumes_a_schedule() -> None:
    assert ok("schedules", "pause", "beat").out == "beat: paused.\n"
    assert ok("schedules", "pause", "beat").out == "beat: was already paused.\n"
    assert "paused 0s" in ok("schedules").out
    assert ok("schedules", "resume", "beat", "--json").document == {"schedule": "beat", "changed": True}
    assert ok("schedules", "resume", "beat").out == "beat: was not paused.\n"


@pytest.mark.usefixtures("beat")
def test_schedules_removes_a_schedule_that_its_worker_adds_again(worker: Worker) -> None:
    assert ok("schedules", "remove", "beat").out.startswith("beat: removed")
    assert ok("schedules").out == ""

    Ticker(worker.engine, worker.tasks.values()).tick()

    assert len(ok("schedules").out.splitlines()) == 2


@pytest.mark.parametrize("action", ["pause", "resume", "remove"])
def test_schedules_refuses_an_unknown_name(action: str) -> None:
    ran = cli("schedules", action, "beat")

    assert ran.code != 0
    assert "There is no schedule 'beat'." in ran.err


def test_schedules_suggests_a_similar_name(worker: Worker) -> None:
    @worker.task(name="shop.report", every=SECOND)
    def report() -> None: ...

    Ticker(worker.engine, worker.tasks.values()).tick()

    assert "Did you mean 'shop.report'?" in cli("schedules", "pause", "shop.raport").err


@pytest.mark.parametrize("action", ["pause", "resume", "remove"])
def test_schedules_refuses_an_action_without_a_name(action: str) -> None:
    assert cli("schedules", action).code == 2


def test_schedules_says_that_there_are_none() -> None:
    assert "No schedules found" in ok("schedules").err
    assert ok("schedules", "--json").out == ""


def test_schedules_prints_long_names_whole_on_a_terminal(worker: Worker, url: str) -> None:
    name = "shop.reports." + "x" * 40

    @worker.task(name=name, every=SECOND)
    def beat() -> None: ...

    Ticker(worker.engine, worker.tasks.values()).tick()

    assert name in without_escapes(on_terminal("schedules", url=url))
