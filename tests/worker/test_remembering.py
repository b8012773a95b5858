"""What an execution remembers of its steps and sleeps: values, keys, moments, over suspensions, retries and replays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import attrs
import pytest

from flowfabric_worker import (
    DurableCallError,
    ExecutionFailed,
    RetryPolicy,
    Run,
    ValidationError,
    Worker,
    current,
    step,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.mailbox import Mailbox
from tests.support.observation import ended, in_state, info_of
from tests.worker.conftest import Start

MOMENT = timedelta(milliseconds=20)
TWICE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(milliseconds=1))


@attrs.frozen
class Receipt:
    number: int


# D1: values


def pair() -> tuple[int, str]:
    return 1, "a"


def moment() -> datetime:
    return datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))


def receipt() -> Receipt:
    return Receipt(7)


def numbers() -> set[int]:
    return {1, 2}


def amount() -> Decimal:
    return Decimal("7.10")


@pytest.mark.parametrize("function", [pair, moment, receipt, numbers, amount], ids=lambda each: each.__name__)
def test_a_result_is_equal_in_value_and_type_in_every_run(
    worker: Worker, start: Start, function: Callable[[], Any]
) -> None:
    seen: list[Any] = []

    @worker.task
    def remember() -> None:
        seen.append(current().step("value", function))
        current().sleep(MOMENT)

    start(worker)
    remember.submit().result(10)

    assert seen == [function()] * 2
    assert {type(each) for each in seen} == {type(function())}


# D4: sleeps


def test_a_sleep_ends_when_it_was_to_although_its_worker_was_replaced(
    another: Callable[..., Worker], start: Start
) -> None:
    ended_at: list[float] = []
    begun: list[str] = []

    def drowsy() -> None:
        begun.append(current().kind)
        current().sleep(timedelta(seconds=1))
        ended_at.append(time.monotonic())

    first, second = another(), another()
    run = first.task(drowsy).submit()
    second.task(drowsy)
    began = time.monotonic()
    runtime = start(first)
    in_state(first, run, PublicState.DELAYED)
    runtime.stop(timedelta())
    start(second)
    second.engine.wait_for_result(run.id, timedelta(seconds=10))

    assert ended_at[0] - began > 0.9
    assert begun == ["fresh", "resumed"]
    assert info_of(second, run).step_count == 1


def test_no_sleep_returns_at_once_and_a_wrong_one_is_an_error(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> list[str]:
        current().sleep(timedelta(0))
        told = []
        for wrong in (timedelta(seconds=-1), datetime(2030, 1, 1)):
            try:
                current().sleep(wrong)
            except ValueError as error:
                told.append(str(error))
        return [current().kind, *told]

    start(worker)
    kind, negative, naive = drowsy.submit().result(10)

    assert kind == "fresh"
    assert negative == "sleep() needs a duration that is not negative, not -1 day, 23:59:59."
    assert "time zone" in naive
    with pytest.raises(ValueError, match="NaN"):
        timedelta(seconds=math.nan)


def test_a_moment_to_sleep_until_is_that_of_the_first_run(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task
    def drowsy() -> int:
        number = next(times)
        current().sleep(datetime.now(UTC) + number * timedelta(milliseconds=50))
        return number

    start(worker)

    assert drowsy.submit().result(10) == 2


def test_a_sleep_that_new_code_inserts_does_not_take_the_record_of_another(
    worker: Worker, start: Start, times: Iterator[int]
) -> None:
    kinds: list[Any] = []

    @worker.task
    def drowsy() -> None:
        number = next(times)
        if number > 1:
            current().sleep(timedelta(milliseconds=1))
            current().sleep(MOMENT, name="new")
        current().sleep(MOMENT)
        current().sleep(MOMENT, name="old")
        kinds.append(number)

    start(worker)
    run = drowsy.submit()
    run.result(10)

    # Each of the four sleeps has ended one run.
    assert kinds == [5]
    assert info_of(worker, run).step_count == 4


@pytest.mark.parametrize("name", ["x", "ff:x", ""])
def test_names_of_sleeps_are_those_of_steps(worker: Worker, start: Start, name: str) -> None:
    @worker.task(retry=TWICE)
    def drowsy() -> None:
        current().sleep(timedelta(0), name=name)
        current().sleep(timedelta(0), name=name)

    start(worker)

    with pytest.raises(ExecutionFailed, match=r"'sleep x' was used at|cannot be named 'ff:x'|a sleep's name"):
        drowsy.submit().result(10)


# D5: replays


def test_a_replay_keeps_steps_and_waits_or_forgets_them(either: Worker, mailbox: Mailbox, start: Start) -> None:
    ran: list[str] = []

    @either.task
    def pay() -> None:
        current().step("a", ran.append, "a")
        token = current().waitpoint("approval")
        current().step("ask", mailbox.post, token)
        ran.append(f"approved: {current().wait_for('approval').approved}")
        current().step("b", ran.append, "b")
        raise OSError(current().idempotency_key("b"))

    def again(run: Run[None], **options: Any) -> tuple[list[str], str]:
        """Return what ran in a replay, and the key that it had."""
        ran.clear()
        run.replay(**options)
        if options:
            mailbox.approve(mailbox.take(), False)
        error = ended(either, run).error
        assert error is not None
        return list(ran), error

    start(either)
    run = pay.submit()
    mailbox.approve(mailbox.take(), True)
    first = ended(either, run).error

    assert ran == ["a", "approved: True", "b"]
    kept, key = again(run)
    assert (kept, key) == (["approved: True"], first)
    forgotten, key = again(run, steps="forget")
    assert forgotten == ["a", "approved: False", "b"]
    assert key != first
    cut, _ = again(run, from_step="ask")
    assert cut == ["approved: False", "b"]


# D6: keys


def test_a_key_is_the_same_in_every_run_and_another_for_another_name(
    worker: Worker, start: Start, times: Iterator[int]
) -> None:
    keys: list[tuple[str, str]] = []

    @worker.task(retry=TWICE)
    def pay() -> None:
        number = next(times)
        keys.append((current().idempotency_key("charge"), current().idempotency_key("refund")))
        current().sleep(MOMENT)
        if number < 3:
            raise OSError

    start(worker)
    pay.submit().result(10)
    first = list(keys)
    keys.clear()
    pay.submit().result(10)

    assert len(set(first)) == 1
    assert len(first) >= 3
    assert len({*first[0], *keys[0]}) == 4
    assert all(len(each) <= 64 and each.isascii() and each.isprintable() for each in first[0])


def test_a_plain_call_has_keys_of_its_own(worker: Worker) -> None:
    task = worker.task(name="key")(lambda: [current().idempotency_key(name) for name in ("a", "a", "b")])
    first, second = task(), task()

    assert first[0] == first[1] != first[2]
    assert first[0] != second[0]


# D7: changed code


def test_a_waiting_execution_goes_on_with_changed_code(
    another: Callable[..., Worker], start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []
    old, new = another(), another()
    mailbox = Mailbox(new)

    def before() -> None:
        current().step("a", ran.append, "old a")
        mailbox.post(current().waitpoint("x"))
        current().wait_for("x")
        current().step("b", ran.append, "old b")

    def after() -> list[Any]:
        current().step("n", ran.append, "n")
        current().step("a", ran.append, "new a")
        got = current().wait_for("x")
        current().step("c", ran.append, "c")
        return [got]

    run = old.task(name="shop.change")(before).submit()
    new.task(name="shop.change")(after)
    runtime = start(old)
    token = mailbox.take()
    in_state(old, run, PublicState.SUSPENDED)
    runtime.stop(timedelta())
    mailbox.signal(token, "x", 7)
    start(new)

    assert new.engine.wait_for_result(run.id, timedelta(seconds=10)).result == b"[7]"
    assert ran == ["old a", "n", "c"]
    assert [record.levelname for record in caplog.records if record.levelno > 20] == []


# step as a function and a decorator


@step("charge")
def charge(order: int, *, currency: str = "CHF") -> Receipt:
    charged.append(f"{order} {currency}")
    return Receipt(order)


charged: list[str] = []


def test_each_call_of_a_decorated_function_is_the_step(worker: Worker, start: Start) -> None:
    charged.clear()

    @worker.task
    def pay() -> list[Any]:
        first = charge(7, currency="EUR")
        second = step("other", charge_again, order=8)
        current().sleep(MOMENT)
        return [first.number, second.number, type(first).__name__]

    def charge_again(order: int) -> Receipt:
        charged.append(str(order))
        return Receipt(order)

    start(worker)

    assert pay.submit().result(10) == [7, 8, "Receipt"]
    assert charged == ["7 EUR", "8"]


def test_a_decorated_function_outside_of_a_task_is_an_ordinary_one() -> None:
    charged.clear()

    assert [charge(7), charge(7)] == [Receipt(7)] * 2
    assert charged == ["7 CHF"] * 2
    with pytest.raises(RuntimeError, match="outside of a task"):
        step("charge", charge, 7)


def test_a_decorated_function_that_is_called_twice_in_a_run_is_an_error(worker: Worker) -> None:
    task = worker.task(name="pay")(lambda: [charge(7), charge(8)])

    with pytest.raises(DurableCallError, match=r"'charge' was used at .*test_remembering.py"):
        task()


def test_a_name_of_a_key_is_checked(worker: Worker) -> None:
    task = worker.task(name="pay")(lambda: current().idempotency_key(""))

    with pytest.raises(ValidationError):
        task()
