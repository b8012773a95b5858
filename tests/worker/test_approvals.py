"""Handlers that wait for a decision: what is shown, who answers, and what a decision settles."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    Approval,
    Client,
    ExecutionCancelled,
    ExecutionFailed,
    NotFoundError,
    RetryPolicy,
    SignalDuplicate,
    SignalEffect,
    StateError,
    ValidationError,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.mailbox import Mailbox
from tests.support.observation import ended, in_state
from tests.support.servers import wait_until
from tests.worker.conftest import Start

TWICE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(milliseconds=1))


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


def test_the_first_of_two_decisions_stands_and_answers_the_second(
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
