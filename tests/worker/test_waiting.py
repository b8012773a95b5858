"""Handlers that wait for signals and decisions."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest

from flowfabric_worker import (
    Approval,
    AttemptEvent,
    Client,
    Count,
    CountKind,
    DurableCallError,
    EncodingError,
    ExecutionCancelled,
    ExecutionExpired,
    ExecutionFailed,
    FailureClass,
    Middleware,
    NotFoundError,
    RetryPolicy,
    Signal,
    SignalAccepted,
    SignalDuplicate,
    SignalEffect,
    Single,
    StateError,
    StreamValue,
    Suspend,
    TimeoutBehavior,
    TransportError,
    ValidationError,
    WaitTimedOut,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.waitpoint_tokens import from_bearer
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


@pytest.mark.parametrize("again", ["x", ["x", "y"]], ids=["alone", "among others"])
def test_a_name_that_is_waited_for_twice_is_an_error_that_names_it(either: Worker, start: Start, again: Any) -> None:
    @either.task(retry=TWICE)
    def wait() -> None:
        current().wait_for("x", timeout=SHORT, default=None)
        current().wait_for(again, timeout=SHORT, default=None)

    start(either)
    info = ended(either, wait.submit())

    assert (info.retry_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert info.error is not None
    assert info.error.startswith("DurableCallError: The durable call 'wait x' was used at ")


# W4: answers that name only the execution


def test_a_decision_on_an_execution_with_two_waitpoints_needs_a_name(either: Worker, start: Start) -> None:
    @either.task
    def ask() -> list[Any]:
        got = current().wait_for(["left", "right"])
        return [got["left"].approved, got["right"].approved, len(current().signals)]

    start(either)
    run = ask.submit()
    in_state(either, run, PublicState.SUSPENDED)
    with Client(either.url) as client:
        with pytest.raises(ValidationError, match=r"several waitpoints: 'left', 'right'. Name one") as refused:
            client.approve(run.id, True, by="ann")
        client.approve(run.id, False, by="ann", waitpoint="right")
        client.approve(str(run.id), True, by="bob", waitpoint="left")

        assert refused.value.code == "ambiguous_waitpoint"
        assert run.result(10) == [True, False, 2]
        with pytest.raises(NotFoundError, match="takes no signals now"):
            client.approve(run.id, True, by="ann")


def test_a_decision_on_an_execution_with_one_waitpoint_needs_no_token(either: Worker, start: Start) -> None:
    task = either.task(name="ask")(lambda: [current().wait_for("ok").by])
    start(either)
    run = task.submit()
    in_state(either, run, PublicState.SUSPENDED)
    with Client(either.url) as client:
        client.approve(run.id, True, by="ann")

    assert run.result(10) == ["ann"]


# W5: what is shown


@pytest.mark.parametrize("resumed", [True, False], ids=["after the resume", "in a retry"])
def test_a_document_that_changed_between_runs_is_an_error(
    either: Worker, mailbox: Mailbox, start: Start, times: Iterator[int], resumed: bool
) -> None:
    charged: list[int] = []

    @either.task(retry=TWICE)
    def pay() -> None:
        amount = next(times)
        shown = {"amount": amount if resumed or amount > 2 else 0}
        mailbox.post(current().waitpoint("approval"))
        current().wait_for("approval", shown=shown)
        if not resumed and amount == 2:
            raise OSError
        charged.append(amount)

    start(either)
    run = pay.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    (listed,) = either.engine.list_pending_waitpoints(run.id).waitpoints
    mailbox.approve(token, True)
    info = ended(either, run)

    assert getattr(listed, "shown", None) == (b'{"amount":1}' if resumed else b'{"amount":0}')
    assert charged == []
    assert info.error is not None
    assert info.error.startswith("DurableCallError: The waitpoint shows another document; make the document in a step.")
    assert "approval" in info.error


def test_a_document_that_is_made_in_a_step_is_approved_and_carried_out(
    either: Worker, mailbox: Mailbox, start: Start, times: Iterator[int]
) -> None:
    @either.task
    def pay() -> list[Any]:
        amount = current().step("amount", times.__next__)
        mailbox.post(current().waitpoint("approval"))
        approval = current().wait_for("approval", shown={"amount": amount})
        return [amount, bool(approval)]

    start(either)
    run = pay.submit()
    mailbox.approve(mailbox.take(), True)

    assert run.result(10) == [1, True]


# W6, W7: decisions


@pytest.mark.parametrize("approved", [True, False])
def test_a_decision_reaches_the_handler_with_its_reason_in_every_run(
    either: Worker, mailbox: Mailbox, start: Start, times: Iterator[int], approved: bool
) -> None:
    @either.task(retry=TWICE)
    def pay() -> list[Any]:
        mailbox.post(current().waitpoint("approval"))
        decision = current().wait_for("approval", type=Approval)
        if next(times) == 1:
            raise OSError
        return [bool(decision), decision.approved, decision.reason, decision.by]

    start(either)
    run = pay.submit()
    mailbox.approve(mailbox.take(), approved, reason="says so", by="jane")

    assert run.result(10) == [approved, approved, "says so", "jane"]


def test_a_signal_settles_no_approval(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def pay() -> str:
        mailbox.post(current().waitpoint("approval"))
        decision = current().wait_for("approval", type=Approval)
        return f"{decision.approved} by {decision.by}"

    start(either)
    run = pay.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    for name in ("approval", "approved"):
        told = mailbox.signal(token, name, {"approved": True, "reason": "", "by": "ann"})
        assert (told.effect, told.awaited_names) == (SignalEffect.NO_OP, ("approved", "rejected"))
    mailbox.approve(token, False, by="ann")

    assert run.result(10) == "False by ann"


def test_a_signal_for_one_of_several_approvals_is_an_error(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def pay() -> dict[str, Any]:
        for name in ("paid", "approval"):
            mailbox.post(current().waitpoint(name))
        return current().wait_for(["paid", "approval"], need=1, type={"approval": Approval})

    start(either)
    run = pay.submit()
    mailbox.take()
    mailbox.signal(mailbox.take(), "approval", True, by="joe")

    with pytest.raises(ExecutionFailed, match="The signal 'approval' is not a decision: joe sent it"):
        run.result(10)


@pytest.mark.parametrize("decision", [None, "yes", 1, 0, b""])
def test_what_is_no_decision_is_refused_before_any_call(decision: Any) -> None:
    with pytest.raises(ValidationError, match="A decision is True or False"):
        Client("valkey://127.0.0.1:1").approve("any", decision, by="ann")


def test_of_two_decisions_the_first_stands_and_is_told_to_the_second(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task
    def pay() -> list[Any]:
        mailbox.post(current().waitpoint("approval"))
        wait_until(lambda: len(told) == 1, "both have decided")
        decision = current().wait_for("approval")
        return [decision.approved, decision.by]

    told: list[str] = []
    start(either)
    run = pay.submit()
    token = mailbox.take()
    first = mailbox.approve(token, False, by="jane")
    again = mailbox.approve(token, False, by="jane")
    with pytest.raises(StateError, match="decision=rejected, decided_by=jane") as refused:
        mailbox.approve(token, True, by="joe")
    told.append(refused.value.code)

    assert isinstance(again, SignalDuplicate)
    assert again.existing_signal_id == first.signal_id
    assert run.result(10) == [False, "jane"]


# W9: a failure after a resume


def test_a_retry_after_a_resume_passes_the_wait_without_asking(
    either: Worker, mailbox: Mailbox, start: Start, times: Iterator[int]
) -> None:
    seen: list[tuple[int, list[str]]] = []

    @either.task(retry=RetryPolicy(max_retries=1, backoff="fixed", initial=timedelta(milliseconds=1)))
    def pay() -> None:
        mailbox.post(current().waitpoint("approval"))
        current().wait_for("approval")
        seen.append((current().attempt, [each.id for each in current().signals]))
        raise OSError(f"run {next(times)}")

    start(either)
    run = pay.submit()
    mailbox.approve(mailbox.take(), True)
    info = ended(either, run)

    assert [attempt for attempt, _ in seen] == [0, 1]
    assert seen[0][1] == seen[1][1]
    assert info.error == "OSError: run 2"
    assert either.engine.list_pending_waitpoints(run.id).waitpoints == ()


# W10: code that catches everything


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_a_wait_that_the_handler_swallows_still_suspends_it(
    either: Worker, mailbox: Mailbox, start: Start, caplog: pytest.LogCaptureFixture, caught: type[BaseException]
) -> None:
    closed: list[str] = []

    @either.task(retry=TWICE)
    def careless() -> str:
        mailbox.post(current().waitpoint("x"))
        try:
            current().wait_for("x", timeout=LONG)
        except caught:
            return "fallback"
        finally:
            closed.append(current().kind)
        return "waited"

    start(either)
    run = careless.submit()
    token = mailbox.take()
    info = in_state(either, run, PublicState.SUSPENDED)
    mailbox.signal(token, "x")

    assert run.result(10) == "waited"
    assert closed == ["fresh", "resumed"]
    assert (info.retry_count, "Traceback" in caplog.text) == (0, False)
    if caught is BaseException:
        wait_until(lambda: f"careless of {run.id.plain} caught the Suspend" in caplog.text, "it is logged")


@pytest.mark.parametrize("call", ["step", "sleep", "wait_for"])
def test_a_durable_call_while_a_wait_leaves_the_handler_is_an_error(
    either: Worker, mailbox: Mailbox, start: Start, call: str
) -> None:
    told: list[str] = []
    calls = {
        "step": lambda: current().step("clean up", int, "1"),
        "sleep": lambda: current().sleep(SHORT),
        "wait_for": lambda: current().wait_for("y"),
    }

    @either.task
    def careless() -> None:
        mailbox.post(current().waitpoint("x"))
        try:
            current().wait_for("x")
        finally:
            if current().kind == "fresh":
                try:
                    calls[call]()
                except DurableCallError as error:
                    told.append(str(error))

    start(either)
    run = careless.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    mailbox.signal(token, "x")
    run.result(10)

    assert len(told) == 1
    assert "while the handler is being left (Suspend)" in told[0]


def test_the_lease_is_held_while_the_handler_is_left(either: Worker, mailbox: Mailbox, start: Start) -> None:
    states: list[PublicState | None] = []

    @either.task
    def tidy() -> None:
        token = current().waitpoint("x")
        try:
            current().wait_for("x")
        finally:
            if current().kind == "fresh":
                mailbox.signal(token, "x")
            states.append(run.state())

    run = tidy.submit()
    start(either)
    run.result(10)

    assert states == [PublicState.ACTIVE] * 2


# W12: names that match nothing


def test_a_misspelt_signal_is_told_the_name_that_is_waited_for(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def pay() -> list[Any]:
        mailbox.post(current().waitpoint("approved"))
        current().wait_for("approved")
        return [[each.name, each.matched, each.payload, each.by] for each in current().signals]

    start(either)
    run = pay.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    answer = mailbox.signal(token, "aproved", 1, by="joe")

    assert (answer.effect, answer.awaited_names) == (SignalEffect.NO_OP, ("approved",))
    explanation = either.engine.explain_execution(run.id)
    assert explanation is not None
    assert "1 signal came that matched nothing" in explanation.text
    mailbox.signal(token, "approved", 2, by="ann")
    assert run.result(10) == [["aproved", False, 1, "joe"], ["approved", True, 2, "ann"]]


# Suspend


def test_a_handler_that_raises_suspend_runs_again_with_the_signals(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task
    def vote() -> list[str]:
        if not current().signals:
            mailbox.post(current().waitpoint("votes"))
            raise Suspend(Count(n=2, kind=CountKind.SOURCES, waitpoint_keys=["votes"]), timeout=LONG)
        return [each.by for each in current().signals]

    start(either)
    run = vote.submit()
    token = mailbox.take()
    for by in ("ann", "ann", "bob"):
        mailbox.signal(token, "yes", by=by)

    assert run.result(10) == ["ann", "ann", "bob"]


def test_a_handler_that_raises_suspend_for_what_is_there_runs_again(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task
    def vote() -> list[str]:
        if not current().signals:
            mailbox.signal(current().waitpoint("votes"), "yes", by="ann")
            raise Suspend(Single("votes"))
        return [each.by for each in current().signals]

    start(either)

    assert vote.submit().result(10) == ["ann"]


def test_a_suspend_of_a_users_class_is_read_by_the_thread_of_its_handler(either: Worker, start: Start) -> None:
    readers: set[str] = set()

    class OwnSuspend(Suspend):
        @property
        def request(self) -> Any:
            readers.add(threading.current_thread().name)
            return Suspend(Single("x"), timeout=SHORT).request

        @request.setter
        def request(self, _: Any) -> None: ...

    @either.task
    def wait() -> None:
        readers.add(threading.current_thread().name)
        raise OwnSuspend(Single("x"))

    start(either, threads=1)

    with pytest.raises(ExecutionFailed, match="suspension_timeout"):
        wait.submit().result(10)
    assert len(readers) == 1


@pytest.mark.parametrize(
    ("behavior", "error"),
    [
        (TimeoutBehavior.FAIL, ExecutionFailed),
        (TimeoutBehavior.CANCEL, ExecutionCancelled),
        (TimeoutBehavior.EXPIRE, ExecutionExpired),
    ],
)
def test_the_time_of_a_suspend_ends_the_execution_as_it_says(
    either: Worker, start: Start, behavior: TimeoutBehavior, error: type[Exception]
) -> None:
    @either.task
    def wait() -> None:
        raise Suspend(Single("x"), timeout=SHORT, on_timeout=behavior)

    start(either)

    with pytest.raises(error, match="suspension_timeout"):
        wait.submit().result(10)


def test_a_suspend_on_what_is_answered_fails_the_execution_for_good(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task(retry=TWICE)
    def wait() -> None:
        mailbox.post(current().waitpoint("x"))
        current().wait_for("x")
        raise Suspend(Single("x"))

    start(either)
    run = wait.submit()
    mailbox.signal(mailbox.take(), "x")
    info = ended(either, run)

    assert (info.retry_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert info.error is not None
    assert info.error.startswith("DurableCallError: The waitpoint is in use or closed")


def test_a_suspend_that_can_never_be_met_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValidationError, match="has only 1"):
        Suspend(Count(n=2, kind=CountKind.WAITPOINTS, waitpoint_keys=["x"]))
    with pytest.raises(ValidationError, match="on_timeout must be one of"):
        Suspend(Single("x"), on_timeout="explode")


# Arguments and places


@pytest.mark.parametrize(
    ("names", "options", "match"),
    [
        (["x", "x"], {}, "got a name twice"),
        ("x", {"need": 2}, "need= must be 1 to 1"),
        (["x", "y"], {"need": 0}, "need= must be 1 to 2"),
        (["x", "y"], {"need": True}, "need= must be 1 to 2"),
        ([], {"need": 1}, "need= must be 1 to 0"),
        ("x", {"type": threading.Lock}, "The payload of the signal 'x' cannot be decoded"),
        ("x", {"type": "Payment"}, "The payload of the signal 'x' cannot be decoded"),
        (["x"], {"type": {"y": int}}, "type= has names that are not waited for: 'y'"),
        ("ff:wait", {}, "cannot be named"),
        ("x" * 241, {}, "cannot be named"),
        ("", {}, "name"),
        ("x", {"timeout": timedelta(seconds=-1)}, "timeout must be 0 ms"),
        ("x", {"timeout": 5}, "timeout must be a timedelta"),
        ("x", {"shown": {1: 2}}, "cannot be encoded"),
        ("x", {"shown": "x" * 70_000}, "has 70002 bytes; at most 65536"),
        ([str(number) for number in range(65)], {}, "a suspension may have at most 64 waitpoints"),
    ],
)
def test_arguments_that_do_not_work_are_refused(
    worker: Worker, start: Start, names: Any, options: dict[str, Any], match: str
) -> None:
    task = worker.task(name="wait", retry=TWICE)(lambda: current().wait_for(names, **options))
    start(worker)
    run = task.submit()

    with pytest.raises(ExecutionFailed, match=match):
        run.result(10)
    assert info_of(worker, run).error_class == FailureClass.PERMANENT
    assert info_of(worker, run).retry_count == 0


def test_waiting_outside_of_an_execution_is_refused(worker: Worker) -> None:
    calls = [lambda: current().wait_for("x"), lambda: current().waitpoint("x"), lambda: current().sleep(SHORT)]
    for call in calls:
        with pytest.raises(RuntimeError, match="works only in a durable execution: submit the task"):
            worker.task(name=f"n{calls.index(call)}")(call)()
    local = worker.task(name="local")(lambda: [len(current().signals), current().resume_reason])
    assert local() == [0, None]


def test_a_signal_that_is_too_large_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValidationError, match="The payload of the signal 'paid' has 70002 bytes; at most 65536"):
        Client("valkey://127.0.0.1:1").signal("any", "paid", "x" * 70_000)
    with pytest.raises(EncodingError, match="The payload of the signal 'paid' cannot be encoded"):
        Client("valkey://127.0.0.1:1").signal("any", "paid", object())


@pytest.mark.parametrize("token", ["", "x", "ffw1_", "ffw1_AAAA", None])
def test_what_is_no_token_is_refused_before_any_call(token: Any) -> None:
    with pytest.raises(ValidationError, match="is not valid for that waitpoint"):
        Client("valkey://127.0.0.1:1").signal(token, "paid")


# The life of an execution


def test_a_cancelled_execution_takes_no_late_approval(either: Worker, mailbox: Mailbox, start: Start) -> None:
    carried_out: list[str] = []

    @either.task
    def deploy() -> None:
        mailbox.post(current().waitpoint("approval"))
        if current().wait_for("approval"):
            carried_out.append("deployed")

    start(either)
    run = deploy.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    run.cancel("not needed")

    with pytest.raises(StateError, match="why=cancelled"):
        mailbox.approve(token, True)
    with pytest.raises(ExecutionCancelled):
        run.result(10)
    assert carried_out == []


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


def test_a_run_that_was_cancelled_in_a_wait_waits_again_in_a_replay(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task
    def pay() -> int:
        mailbox.post(current().waitpoint("paid"))
        amount: int = current().wait_for("paid", type=int)
        return amount

    start(either)
    run = pay.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    run.cancel()
    run.replay()

    assert mailbox.take() == token
    mailbox.signal(token, "paid", 7)
    assert run.result(10) == 7


# What is around a wait


class Telling(Middleware):
    """Note which hooks are called."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_suspend(self, event: AttemptEvent) -> None:
        self.told.append(f"suspend {event.error}".rstrip())

    def on_failure(self, event: AttemptEvent) -> None:
        self.told.append(f"failure {event.error}".rstrip())

    def on_retry(self, event: AttemptEvent) -> None:
        self.told.append(f"retry {event.error}".rstrip())

    def on_success(self, event: AttemptEvent) -> None:
        self.told.append(f"success {event.error}".rstrip())


def test_a_wait_is_told_to_the_hook_of_suspensions_alone(another: Callable[..., Worker], start: Start) -> None:
    telling = Telling()
    worker = another(telling)
    task = worker.task(name="wait")(lambda: current().wait_for("x", timeout=SHORT, default=None))
    runtime = start(worker)
    task.submit().result(10)
    runtime.stop(timedelta(seconds=5))

    assert telling.told == ["suspend", "success"]


def test_a_wait_in_another_thread_of_the_handler_is_refused(worker: Worker, start: Start) -> None:
    told: list[str] = []

    @worker.task
    def pay() -> str:
        def elsewhere() -> None:
            token = current().waitpoint("x")
            try:
                current().wait_for("x")
            except DurableCallError as error:
                told.append(str(error))
            told.append(token)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(elsewhere,))
        thread.start()
        thread.join()
        return current().waitpoint("x")

    start(worker)

    assert pay.submit().result(10) == told[1]
    assert told[0].endswith("in another thread than the handler's: make it there.")


def test_a_generator_that_waits_does_not_repeat_what_it_yielded(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def say() -> Generator[str, None, str]:
        yield "before"
        mailbox.post(current().waitpoint("go"))
        yield f"go: {current().wait_for('go')}"
        return "after"

    start(either)
    run = say.submit()
    mailbox.signal(mailbox.take(), "go", 7)

    assert run.result(10) == "after"
    assert [item.value for item in run.stream() if isinstance(item, StreamValue)] == ["before", "go: 7"]


def test_a_task_that_may_be_interrupted_waits_too(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task(interrupt=True, timeout=LONG)
    def pay() -> list[Any]:
        mailbox.post(current().waitpoint("paid"))
        return [current().wait_for("paid")]

    start(either)
    run = pay.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    mailbox.signal(token, "paid", 7)

    assert run.result(10) == [7]


@pytest.mark.parametrize("data", [b"", b"7:x", b"6:signal1:x", b"5:other", b"6:signal1:x6:signal1:x1:y2:"])
def test_a_damaged_record_of_a_wait_fails_the_execution_for_good(worker: Worker, start: Start, data: bytes) -> None:
    task = worker.task(name="wait", retry=TWICE)(lambda: current().wait_for("x"))
    run = task.submit()
    lost = claim_one(worker.engine, "default").handle
    worker.engine.record_step(lost, "ff:wait x", data)
    worker.engine.release(lost)
    start(worker)
    info = ended(worker, run)

    assert (info.retry_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert info.error is not None
    assert info.error.startswith("DecodingError: The record of the wait for 'x' is damaged")


def test_payloads_that_are_no_json_are_bytes_in_signals(worker: Worker, start: Start) -> None:
    seen: list[Any] = []

    @worker.task(retry=TWICE)
    def wait() -> None:
        tokens.append(current().waitpoint("x"))
        try:
            current().wait_for("x")
        finally:
            seen.extend(each.payload for each in current().signals)

    tokens: list[str] = []
    start(worker)
    run = wait.submit()
    in_state(worker, run, PublicState.SUSPENDED)
    target = from_bearer(tokens[0])
    worker.engine.deliver_signal(
        signal_to(target.execution_id, target, "x", payload=b"\xff\0")  # type: ignore[arg-type]  # it has the parts
    )
    info = ended(worker, run)

    assert seen == [b"\xff\0"]
    assert info.error is not None
    assert info.error.startswith("DecodingError: The payload of the signal 'x' is not json")
