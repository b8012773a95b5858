"""examples/reports.py does what it says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest

from examples.reports import Report, daily_report, duty, report_of, worker
from flowfabric_worker import Client, ExecutionFailed, Worker
from flowfabric_worker._runtime.ticker import Ticker
from flowfabric_worker.testing import Clock


@pytest.fixture
def flowfabric() -> Iterator[Worker]:
    with worker.in_memory():
        duty.told.clear()
        yield worker


@pytest.fixture
def clock(flowfabric: Worker) -> Clock:
    return Clock(flowfabric)


def test_a_retry_asks_only_the_branch_that_did_not_answer(
    flowfabric: Worker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "reports")
    run = report_of.submit(["Bern", "Chur"])

    flowfabric.run_until_idle()
    assert run.state() == "delayed"
    clock.move(timedelta(seconds=1))
    flowfabric.run_until_idle()

    assert run.result(0) == Report(branches=["Bern", "Chur"], total=1600)
    asked = [record.getMessage() for record in caplog.records if record.name == "reports"]
    assert asked == ["Bern has taken in 1200", "Chur has taken in 400"]
    assert duty.told == []


def test_who_is_on_duty_hears_of_a_branch_that_does_not_exist(flowfabric: Worker) -> None:
    run = report_of.submit(["Oslo"])

    assert flowfabric.run_until_idle() == 1
    with pytest.raises(ExecutionFailed, match="Oslo"):
        run.result(0)
    assert duty.told == ["reports.report_of: KeyError: 'Oslo'"]


def test_each_handler_is_timed(flowfabric: Worker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flowfabric_worker.task")
    report_of.submit(["Bern"])

    flowfabric.run_until_idle()

    (record,) = [record for record in caplog.records if record.getMessage().startswith("took ")]
    assert vars(record)["ff_task"] == "reports.report_of"


def test_the_report_runs_by_itself_once_a_minute(flowfabric: Worker, clock: Clock) -> None:
    scheduler = Ticker(flowfabric.engine, flowfabric.tasks.values())
    scheduler.tick()
    clock.move(timedelta(minutes=1))
    scheduler.tick()

    with Client(flowfabric.url) as client:
        (submitted,) = client.list(tags={"schedule": "reports.daily_report"})
    flowfabric.run_until_idle()
    clock.move(timedelta(seconds=1))
    flowfabric.run_until_idle()

    report = daily_report.run(submitted.execution_id).result(0)
    assert report == Report(branches=["Bern", "Basel", "Chur"], total=2500)
