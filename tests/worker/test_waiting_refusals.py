"""Waits that are refused: wrong names, arguments, places, and damaged records."""

from __future__ import annotations

import contextvars
import threading
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    Client,
    Count,
    CountKind,
    DurableCallError,
    EncodingError,
    ExecutionFailed,
    FailureClass,
    RetryPolicy,
    SignalEffect,
    Single,
    Suspend,
    ValidationError,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.waitpoint_tokens import from_bearer
from tests.support.executions import claim_one
from tests.support.mailbox import Mailbox
from tests.support.observation import ended, in_state, info_of
from tests.support.suspensions import signal_to
from tests.worker.conftest import Start

SHORT = timedelta(milliseconds=150)
TWICE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(milliseconds=1))


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


# What is around a wait


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
