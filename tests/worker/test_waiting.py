"""Handlers that wait for signals: payloads, several names, and time-outs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest

from flowfabric_worker import (
    FailureClass,
    RetryPolicy,
    Signal,
    SignalAccepted,
    SignalEffect,
    Single,
    StateError,
    TransportError,
    WaitTimedOut,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import claim_one
from tests.support.mailbox import Mailbox
from tests.support.observation import ended, in_state, info_of
from tests.support.servers import wait_until
from tests.support.suspensions import signal_to, waiting_for
from tests.worker.conftest import Start

SHORT = timedelta(milliseconds=150)
LONG = timedelta(minutes=10)
TWICE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(milliseconds=1))


@attrs.frozen
class Payment:
    amount: Decimal
    at: datetime


# The way through


def test_a_signal_resumes_the_handler_which_gets_its_payload(either: Worker, mailbox: Mailbox, start: Start) -> None:
    starts: list[str] = []

    @either.task
    def pay() -> list[Any]:
        starts.append(current().kind)
        mailbox.post(current().waitpoint("paid"))
        amount = current().wait_for("paid")
        return [amount, current().resume_reason, current().attempt]

    start(either)
    run = pay.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    answer = mailbox.signal(token, "paid", {"amount": 7})

    assert run.result(10) == [{"amount": 7}, "signal", 0]
    assert isinstance(answer, SignalAccepted)
    assert answer.effect is SignalEffect.RESUME_CONDITION_SATISFIED
    assert starts == ["fresh", "resumed"]
    assert mailbox.take() == token
    assert (info_of(either, run).retry_count, info_of(either, run).past_attempts) == (0, ())


def test_a_payload_is_decoded_by_the_type_that_the_handler_gives(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    given = Payment(Decimal("7.10"), datetime(2030, 1, 1, tzinfo=UTC))
    got: list[Payment] = []

    @either.task
    def pay() -> None:
        mailbox.post(current().waitpoint("paid"))
        got.append(current().wait_for("paid", type=Payment))
        if current().attempt == 0:
            current().sleep(timedelta(milliseconds=1))

    start(either)
    run = pay.submit()
    mailbox.signal(mailbox.take(), "paid", given)
    run.result(10)

    assert got == [given] * 2
    assert {type(each.amount) for each in got} == {Decimal}


def test_a_payload_of_another_type_fails_the_execution_for_good(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task(retry=TWICE)
    def pay() -> None:
        mailbox.post(current().waitpoint("paid"))
        current().wait_for("paid", type=Payment)

    start(either)
    run = pay.submit()
    mailbox.signal(mailbox.take(), "paid", "seven")
    info = ended(either, run)

    assert (info.retry_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert info.error is not None
    assert "The payload of the signal 'paid'" in info.error


# W1: a signal that comes before the wait


def test_a_signal_before_the_wait_is_returned_at_once_under_the_same_lease(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    epochs: list[int | None] = []

    def note() -> None:
        lease = info_of(either, run).current_lease
        epochs.append(lease and lease.lease_epoch)

    @either.task
    def pay() -> list[Any]:
        mailbox.post(current().waitpoint("paid"))
        wait_until(lambda: len(sent) == 1, "the signal is sent")
        note()
        amount = current().wait_for("paid")
        note()
        return [amount, current().kind, [each.name for each in current().signals]]

    sent: list[SignalAccepted] = []
    run = pay.submit()
    start(either)
    sent.append(mailbox.signal(mailbox.take(), "paid", 7))

    assert sent[0].effect is SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT
    assert run.result(10) == [7, "fresh", ["paid"]]
    assert epochs[0] == epochs[1]


def test_what_was_there_already_is_remembered_by_the_next_attempt(
    either: Worker, mailbox: Mailbox, start: Start, times: Iterator[int]
) -> None:
    @either.task(retry=TWICE)
    def pay() -> int:
        token = current().waitpoint("paid")
        number = next(times)
        if number == 1:
            mailbox.signal(token, "paid", 7)
        amount: int = current().wait_for("paid", type=int)
        if number == 1:
            raise OSError
        return amount + number

    start(either)

    assert pay.submit().result(10) == 7 + 2


def test_what_a_lost_worker_had_taken_is_returned_to_the_next(either: Worker, start: Start) -> None:
    task = either.task(name="wait")(lambda: [current().wait_for("x"), current().kind])
    run = task.submit()
    lost = claim_one(either.engine, "default").handle
    waitpoint = either.engine.create_waitpoint(lost, "x", LONG)
    either.engine.deliver_signal(signal_to(run.id, waitpoint, "x", payload=b"7"))
    taken = either.engine.try_satisfy(lost, waiting_for("x", condition=Single("x"), continuation="ff:wait x"))
    assert taken is not None
    either.engine.release(lost)
    start(either)

    assert run.result(10) == [7, "resumed"]
    assert info_of(either, run).step_count == 1


def test_the_first_signal_of_each_name_counts_behind_a_thousand_others(served: Worker, start: Start) -> None:
    mailbox = Mailbox(served)

    @served.task
    def ask() -> dict[str, Any]:
        tokens = {name: current().waitpoint(name) for name in ("left", "right")}
        with mailbox.client as client:
            for number in range(1001):
                client.signal(tokens["left"], "left", number)
            client.signal(tokens["right"], "right", "r")
        return current().wait_for(["left", "right"])

    start(served)

    assert ask.submit().result(60) == {"left": 0, "right": "r"}


def test_a_store_that_refuses_a_call_does_not_fail_a_wait_for_good(
    worker: Worker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TransportError("permission_denied")

    task = worker.task(name="wait")(lambda: current().wait_for("x"))
    monkeypatch.setattr(worker.engine, "try_satisfy", refuse)
    start(worker)

    assert ended(worker, task.submit()).error_class == FailureClass.TRANSIENT


# W2: several names


def test_the_first_of_two_events_is_enough_and_closes_the_other(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def follow() -> dict[str, Any]:
        for name in ("done", "error"):
            mailbox.post(current().waitpoint(name))
        return current().wait_for(["done", "error"], need=1, timeout=LONG)

    start(either)
    run = follow.submit()
    done, error = mailbox.take(), mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    mailbox.signal(done, "done", 1)

    assert run.result(10) == {"done": 1}
    assert either.engine.list_pending_waitpoints(run.id).waitpoints == ()
    with pytest.raises(StateError, match="why=resumed") as refused:
        mailbox.signal(error, "error", 2)
    assert refused.value.code == "waitpoint_closed"


def test_answers_come_in_any_order_and_go_to_their_names(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def ask() -> dict[str, Any]:
        for name in ("left", "right"):
            mailbox.post(current().waitpoint(name))
        return current().wait_for(["left", "right"], type={"left": int, "right": str})

    start(either)
    run = ask.submit()
    left, right = mailbox.take(), mailbox.take()
    mailbox.signal(right, "right", "r")
    mailbox.signal(left, "left", 1)

    assert run.result(10) == {"left": 1, "right": "r"}


def test_waiting_for_no_name_returns_at_once(worker: Worker, start: Start) -> None:
    task = worker.task(name="nothing")(lambda: current().wait_for([]))
    start(worker)

    assert task.submit().result(10) == {}


# W3: time-outs


def test_each_wait_times_out_once_and_earlier_ones_are_passed(either: Worker, start: Start) -> None:
    ran: list[str] = []

    @either.task
    def tick() -> list[str]:
        told = []
        for number in range(3):
            try:
                current().wait_for(f"tick-{number}", timeout=SHORT)
            except WaitTimedOut as error:
                told += error.names
            current().step(f"step-{number}", ran.append, f"step-{number}")
        return [*told, str(current().resume_reason)]

    start(either)
    began = time.monotonic()
    told = tick.submit().result(10)
    took = time.monotonic() - began

    assert told == ["tick-0", "tick-1", "tick-2", "timeout"]
    assert ran == ["step-0", "step-1", "step-2"]
    assert 3 * SHORT.total_seconds() <= took < 5 * SHORT.total_seconds() + 1


def test_a_default_is_returned_when_the_time_is_over(either: Worker, start: Start) -> None:
    task = either.task(name="wait")(lambda: [current().wait_for("x", timeout=SHORT, default="late")])
    start(either)

    assert task.submit().result(10) == ["late"]


def test_a_time_out_tells_what_came_in_time(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def ask() -> list[Any]:
        mailbox.post(current().waitpoint("left"))
        try:
            current().wait_for(["left", "right"], timeout=2 * SHORT)
        except WaitTimedOut as error:
            return [error.received, error.reason, str(error)]
        return []

    start(either)
    run = ask.submit()
    mailbox.signal(mailbox.take(), "left", 1)

    assert run.result(10) == [
        {"left": 1},
        "timeout",
        "The wait for 'left', 'right' ended because its time was over; 'left' came.",
    ]


def test_a_time_out_that_is_not_caught_fails_the_execution_for_good(either: Worker, start: Start) -> None:
    task = either.task(name="wait", retry=TWICE)(lambda: current().wait_for("x", timeout=SHORT))
    start(either)
    info = ended(either, task.submit())

    assert (info.retry_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert info.error == "WaitTimedOut: The wait for 'x' ended because its time was over."


def test_an_operator_who_resumes_a_wait_ends_it_without_an_answer(either: Worker, start: Start) -> None:
    @either.task
    def wait() -> list[Any]:
        try:
            return [current().wait_for("x", timeout=LONG)]
        except WaitTimedOut as error:
            return [error.reason, current().resume_reason]

    start(either)
    run = wait.submit()
    in_state(either, run, PublicState.SUSPENDED)
    either.engine.resume_execution(run.id)

    assert run.result(10) == ["operator", "operator"]


# The life of an execution


def test_a_wait_is_remembered_when_new_code_waits_before_it(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def pay() -> list[Any]:
        got = []
        if current().kind == "resumed":
            # This release asks for one more thing, before what the last release asked for.
            mailbox.post(current().waitpoint("new"))
            got.append(current().wait_for("new"))
        mailbox.post(current().waitpoint("old"))
        got.append(current().wait_for("old"))
        return got

    start(either)
    run = pay.submit()
    mailbox.signal(mailbox.take(), "old", 1)
    mailbox.signal(mailbox.take(), "new", 2)

    assert run.result(10) == [2, 1]


def test_a_signal_tells_its_parts(either: Worker, mailbox: Mailbox, start: Start) -> None:
    seen: list[Signal] = []

    @either.task
    def pay() -> None:
        mailbox.post(current().waitpoint("paid"))
        current().wait_for("paid")
        seen.extend(current().signals)

    start(either)
    run = pay.submit()
    answer = mailbox.signal(mailbox.take(), "paid", [1], by="bank", key="k")
    run.result(10)
    (signal,) = seen

    assert (signal.id, signal.waitpoint, signal.name, signal.payload) == (answer.signal_id, "paid", "paid", [1])
    assert (signal.by, signal.matched) == ("bank", True)
    assert abs(signal.at - datetime.now(UTC)) < timedelta(minutes=1)
