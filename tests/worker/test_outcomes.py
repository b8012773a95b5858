"""What a handler does, and what becomes of its execution."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import pytest

from flowfabric_worker import (
    Cancel,
    Delay,
    ExecutionFailed,
    Fail,
    FailureClass,
    HandlerExit,
    Interrupted,
    Limits,
    Retry,
    RetryPolicy,
    Run,
    Task,
    ValidationError,
    WaitChildren,
    Worker,
    current,
)
from flowfabric_worker.engine.types.operating import ReplayExecutionArgs
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from tests.conformance.work import claim_one
from tests.servers import wait_until
from tests.worker.conftest import Start

AT_ONCE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(), jitter=False)
HOUR = timedelta(hours=1)


def info_of(worker: Worker, run: Run[Any]) -> ExecutionInfo:
    """What the store holds of a run."""
    info = worker.engine.read_execution_info(run.id)
    assert info is not None
    return info


def ended(worker: Worker, run: Run[Any]) -> ExecutionInfo:
    """What the store holds of a run that has ended."""
    worker.engine.wait_for_result(run.id, timedelta(seconds=10))
    return info_of(worker, run)


def in_state(worker: Worker, run: Run[Any], state: PublicState) -> ExecutionInfo:
    """What the store holds of a run that comes into a state."""
    wait_until(lambda: run.state() is state, f"the run is {state}")
    return info_of(worker, run)


@pytest.fixture
def times() -> Iterator[int]:
    """Counts the runs of a handler that asks for the next number."""
    return iter(range(1, 1000))


# Returning and raising


def test_a_returned_value_completes_the_execution(worker: Worker, start: Start) -> None:
    @worker.task
    def double(number: int) -> int:
        return 2 * number

    start(worker)
    run = double.submit(21)

    assert ended(worker, run).public_state is PublicState.COMPLETED
    assert worker.engine.get_execution_result(run.id) == b"42"


def test_an_exception_fails_the_attempt_with_its_type_message_and_traceback(worker: Worker, start: Start) -> None:
    @worker.task
    def broken() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise LookupError("no such order") from error

    start(worker)
    info = ended(worker, broken.submit())

    assert (info.public_state, info.error_class) == (PublicState.FAILED, FailureClass.TRANSIENT)
    assert info.error == "LookupError: no such order"
    detail = info.error_detail.decode()
    assert "KeyError: 'inner'" in detail
    assert 'raise LookupError("no such order") from error' in detail
    assert (info.retry_count, info.total_attempt_count) == (0, 1)


def test_what_is_kept_of_a_traceback_is_bounded_and_holds_its_end(worker: Worker, start: Start) -> None:
    @worker.task
    def deep(left: int) -> None:
        if left == 0:
            raise ValueError("x" * 40_000 + " and the end")
        deep.function(left - 1)

    start(worker)
    info = ended(worker, deep.submit(200))

    assert len(info.error_detail) == 16 * 1024
    assert info.error_detail.endswith(b"and the end\n")
    assert info.error is not None
    assert len(info.error) == 2 * 1024


def test_an_exception_is_retried_as_the_policy_says(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task(retry=AT_ONCE)
    def flaky() -> list[int]:
        if next(times) < 3:
            raise OSError("not yet")
        return [current().attempt, current().retry_count]

    start(worker)
    run = flaky.submit()

    assert run.result(10) == [2, 2]
    assert [past.error for past in info_of(worker, run).past_attempts] == ["OSError: not yet"] * 2


def test_retries_end_with_the_last_failure(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task(retry=AT_ONCE)
    def broken() -> None:
        raise OSError(f"time {next(times)}")

    start(worker)
    info = ended(worker, broken.submit())

    assert (info.error, info.retry_count, info.total_attempt_count) == ("OSError: time 3", 2, 3)


class DeclinedError(Exception):
    pass


class StolenCardError(DeclinedError):
    pass


def raise_stolen() -> NoReturn:
    raise StolenCardError("4711")


def raise_fail() -> NoReturn:
    raise Fail("no such card", detail="card 4711")


@pytest.mark.parametrize(
    ("raises", "error", "detail"),
    [(raise_stolen, "StolenCardError: 4711", "raise StolenCardError"), (raise_fail, "no such card", "card 4711")],
)
def test_a_permanent_failure_is_not_retried(worker: Worker, start: Start, raises: Any, error: str, detail: str) -> None:
    task: Task[[], None] = worker.task(name="pay", retry=AT_ONCE, permanent=(DeclinedError,))(raises)
    start(worker)
    info = ended(worker, task.submit())

    assert (info.public_state, info.error_class) == (PublicState.FAILED, FailureClass.PERMANENT)
    assert (info.error, info.total_attempt_count) == (error, 1)
    assert detail in info.error_detail.decode()


def test_an_exception_that_is_not_listed_as_permanent_is_retried(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE, permanent=(StolenCardError,))
    def pay() -> None:
        raise DeclinedError

    start(worker)

    assert ended(worker, pay.submit()).total_attempt_count == 3


def test_retry_waits_as_long_as_it_says_and_counts(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE)
    def later() -> None:
        raise Retry("the bank is closed", after=HOUR)

    start(worker)
    info = in_state(worker, later.submit(), PublicState.DELAYED)

    assert info.delay_until_ms == info.last_mutation_at_ms + 3_600_000
    assert (info.retry_count, info.error) == (1, "the bank is closed")


def test_retry_without_retries_left_fails(worker: Worker, start: Start) -> None:
    @worker.task
    def later() -> None:
        raise Retry("the bank is closed", after=HOUR)

    start(worker)
    info = ended(worker, later.submit())

    assert (info.public_state, info.error, info.error_class) == (
        PublicState.FAILED,
        "the bank is closed",
        FailureClass.TRANSIENT,
    )


def test_what_a_handler_says_with_the_wrong_type_fails_its_own_run_alone(worker: Worker, start: Start) -> None:
    @worker.task
    def wrong(how: str) -> None:
        match how:
            case "retry":
                raise Retry(after=5)  # type: ignore[arg-type]  # that is the point
            case "delay":
                raise Delay(datetime(2031, 1, 1))
            case "fail":
                raise Fail(ValueError("an error as a reason"))

    start(worker, threads=4)
    runs = {how: wrong.submit(how) for how in ("retry", "delay", "fail", "right")}
    errors = {how: ended(worker, run).error for how, run in runs.items()}

    assert errors["retry"] is not None
    assert "after must be a timedelta" in errors["retry"]
    assert errors["delay"] is not None
    assert "Delay needs a moment with a time zone" in errors["delay"]
    assert errors["fail"] == "an error as a reason"
    assert errors["right"] is None


class BrokenTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OwnBase(BaseException):
    pass


class OwnExit(HandlerExit):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (GeneratorExit(), "GeneratorExit: "),
        (OwnBase("mine"), "OwnBase: mine"),
        (OwnExit("mine"), "OwnExit: mine"),
        (Interrupted("by hand"), "Interrupted: by hand"),
        (BrokenTextError(), "BrokenTextError: (its text cannot be had)"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (MemoryError(), "MemoryError: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_raised_fails_the_attempt_and_the_thread_goes_on(
    worker: Worker, start: Start, error: BaseException, message: str
) -> None:
    @worker.task
    def raising(really: bool) -> str:
        if really:
            raise error
        return threading.current_thread().name

    start(worker, threads=1)
    before = raising.submit(False).result(10)
    info = ended(worker, raising.submit(True))

    assert (info.error, info.error_class) == (message, FailureClass.TRANSIENT)
    assert raising.submit(False).result(10) == before == "flowfabric-handler-0"


def test_what_a_handler_raises_to_end_its_run_is_not_caught_by_its_own_except_exception(
    worker: Worker, start: Start
) -> None:
    @worker.task
    def careful() -> str:
        try:
            raise Cancel("enough")
        except Exception:  # noqa: BLE001  that is the point
            return "caught"

    start(worker)

    assert ended(worker, careful.submit()).public_state is PublicState.CANCELLED


# Leaving in other ways


def test_cancel_ends_the_execution_as_cancelled(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE)
    def given_up() -> None:
        raise Cancel("nobody wants it")

    start(worker)
    info = ended(worker, given_up.submit())

    assert (info.public_state, info.cancel_reason) == (PublicState.CANCELLED, "nobody wants it")
    assert (info.cancelled_by, info.total_attempt_count) == ("lease_holder", 1)


def test_delay_runs_the_handler_again_in_the_same_attempt(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task
    def later() -> list[Any]:
        if next(times) == 1:
            raise Delay(timedelta(milliseconds=20))
        return [current().kind, current().attempt, current().retry_count]

    start(worker)

    assert later.submit().result(10) == ["resumed", 0, 0]


def test_delay_takes_a_moment(worker: Worker, start: Start) -> None:
    moment = datetime(2040, 1, 1, tzinfo=UTC)

    @worker.task
    def later() -> None:
        raise Delay(moment)

    start(worker)

    assert in_state(worker, later.submit(), PublicState.DELAYED).delay_until_ms == moment.timestamp() * 1000


def test_wait_children_without_children_goes_on_at_once(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task
    def parent() -> str:
        if next(times) == 1:
            raise WaitChildren
        return current().kind

    start(worker)

    assert parent.submit().result(10) == "resumed"


def test_sleep_frees_the_thread_and_returns_the_second_time(worker: Worker, start: Start) -> None:
    passed: list[str] = []

    @worker.task
    def drowsy() -> list[str]:
        passed.append("begun")
        current().sleep(timedelta(milliseconds=20))
        passed.append("first")
        current().sleep(timedelta(milliseconds=20))
        passed.append("second")
        return passed

    start(worker)
    run = drowsy.submit()

    assert run.result(10) == ["begun", "begun", "first", "begun", "first", "second"]
    assert (info_of(worker, run).total_attempt_count, info_of(worker, run).retry_count) == (1, 0)


def test_sleep_lasts_as_long_as_it_says(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> None:
        current().sleep(HOUR)

    worker.engine.set_clock(datetime(2030, 1, 1, tzinfo=UTC))
    runtime = start(worker)
    run = drowsy.submit()

    info = in_state(worker, run, PublicState.DELAYED)
    assert info.delay_until_ms == datetime(2030, 1, 1, 1, tzinfo=UTC).timestamp() * 1000
    # Nobody who waits is told of a clock that is set: whoever claims anew sees it.
    runtime.stop()
    worker.engine.set_clock(datetime(2030, 1, 1, 1, tzinfo=UTC))
    start(worker)
    assert run.result(10) is None


def test_a_sleep_that_a_lost_worker_had_only_begun_goes_on(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> None:
        current().sleep(HOUR)

    run = drowsy.submit()
    lost = claim_one(worker.engine, "default").handle
    ends_at = worker.engine.server_time() + 3_600_000
    worker.engine.record_step(lost, "sleep 1", str(ends_at).encode())
    worker.engine.release(lost)
    start(worker)

    assert in_state(worker, run, PublicState.DELAYED).delay_until_ms == ends_at


def test_a_sleep_of_no_duration_is_refused(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> None:
        with pytest.raises(ValidationError):
            current().sleep(5)  # type: ignore[arg-type]  # that is the point

    start(worker)

    assert drowsy.submit().result(10) is None


# What cannot be read or written


def test_a_payload_that_does_not_decode_fails_for_good_without_running(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE)
    def double(number: int) -> int:
        raise AssertionError(f"it ran with {number}")

    payloads = [b"not json", b'{"a": 1}', b'[["one"]]', b"[[1, 2]]", None]
    ids = [
        worker.engine.create_execution(
            CreateExecutionArgs(
                lane="default",
                task="double",
                payload=payload,
                codec="json",
                policy=double.options_given.policy(),
            )
        ).execution_id
        for payload in payloads
    ]
    start(worker)

    for each in ids:
        info = ended(worker, double.run(each))
        assert info.error_class == FailureClass.PERMANENT
        assert info.error is not None
        assert info.error.startswith("DecodingError: payload_decode: ")
        assert info.total_attempt_count == 1


def test_a_payload_in_an_unknown_codec_fails_for_good(worker: Worker, start: Start) -> None:
    @worker.task
    def double(number: int) -> int:
        return 2 * number

    args = CreateExecutionArgs(lane="default", task="double", payload=b"[[1]]", codec="pickle")
    created = worker.engine.create_execution(args)
    start(worker)
    info = ended(worker, double.run(created.execution_id))

    assert info.error_class == FailureClass.PERMANENT
    assert "'pickle'" in (info.error or "")


def test_a_result_that_would_not_come_back_fails_for_good(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE)
    def odd() -> int:
        return "one"  # type: ignore[return-value]  # that is the point

    start(worker)
    info = ended(worker, odd.submit())

    assert (info.error_class, info.total_attempt_count) == (FailureClass.PERMANENT, 1)
    assert "The result of odd()" in (info.error or "")


def test_a_result_over_the_limit_fails_for_good(start: Start) -> None:
    worker = Worker("shop", "memory://", limits=Limits(payload_bytes=100))

    @worker.task(retry=AT_ONCE)
    def text(size: int) -> str:
        return "x" * size

    start(worker)

    assert text.submit(98).result(10) == "x" * 98
    info = ended(worker, text.submit(99))
    assert (info.error_class, info.total_attempt_count) == (FailureClass.PERMANENT, 1)
    assert info.error == "EncodingError: payload_too_large: the result has 101 bytes; at most 100 are allowed."
    worker.close()


def test_work_for_a_task_that_nobody_here_knows_is_never_claimed(worker: Worker, start: Start) -> None:
    @worker.task
    def known() -> str:
        return "done"

    other = Worker("other", worker.url)
    unknown = other.task(name="unknown", priority=9)(lambda: None).submit()
    start(worker)

    assert known.submit().result(10) == "done"
    info = info_of(worker, unknown)
    assert (info.public_state, info.total_attempt_count) == (PublicState.WAITING, 0)
    explanation = worker.engine.explain_execution(unknown.id)
    assert explanation is not None
    assert explanation.code == "no_handler"
    other.close()


# Running out of time, and being told


def test_a_run_past_its_timeout_fails_and_its_handler_is_told(worker: Worker, start: Start) -> None:
    told: list[str] = []

    @worker.task(timeout=timedelta(milliseconds=200))
    def slow() -> str:
        assert current().cancelled.wait(10)
        try:
            current().check()
        except Interrupted as interrupted:
            told.append(interrupted.reason)
            raise
        return "it was not told"

    start(worker, threads=1)
    began = time.monotonic()
    info = ended(worker, slow.submit())

    assert (info.public_state, info.error_class) == (PublicState.FAILED, FailureClass.TIMEOUT)
    assert info.error == "attempt_timeout"
    # One busy thread claims nothing, so nobody else looks for what is due.
    assert time.monotonic() - began < 2
    wait_until(lambda: told == ["timeout"], "the handler was told")


def test_a_timeout_is_retried_and_a_late_result_does_not_count(
    worker: Worker, start: Start, times: Iterator[int], caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()

    @worker.task(retry=AT_ONCE, timeout=timedelta(milliseconds=200))
    def slow() -> int:
        number = next(times)
        if number == 1:
            over.wait(10)
        return number

    start(worker, threads=2)
    run = slow.submit()

    assert run.result(10) == 2
    over.set()
    wait_until(lambda: "ended (complete), which does not count: timeout" in caplog.text, "the late result is dropped")
    assert run.result(10) == 2
    assert info_of(worker, run).retry_count == 1


def test_an_execution_past_its_deadline_expires_and_its_handler_is_told(worker: Worker, start: Start) -> None:
    told = threading.Event()

    @worker.task(deadline=timedelta(milliseconds=300))
    def slow() -> None:
        assert current().deadline is not None
        current().cancelled.wait(10)
        told.set()
        current().check()

    start(worker, threads=1)
    info = ended(worker, slow.submit())

    assert (info.public_state, info.error) == (PublicState.EXPIRED, "execution_deadline")
    assert told.wait(10)


# What a handler is told of its run


def test_the_context_says_what_the_run_is(worker: Worker, start: Start) -> None:
    @worker.task(lane="mail", tags={"team": "a"}, deadline=HOUR)
    def describe() -> dict[str, Any]:
        context = current()
        return {
            "id": context.id,
            "task": context.task,
            "lane": context.lane,
            "kind": context.kind,
            "tags": dict(context.tags),
            "deadline": context.deadline is not None and context.deadline.timestamp() * 1000,
        }

    start(worker)
    run = describe.submit()

    assert run.result(10) == {
        "id": str(run.id),
        "task": "describe",
        "lane": "mail",
        "kind": "fresh",
        "tags": {"team": "a"},
        "deadline": info_of(worker, run).deadline_at_ms,
    }


def test_progress_can_be_seen_while_the_handler_runs(worker: Worker, start: Start) -> None:
    said, go_on = threading.Event(), threading.Event()

    @worker.task
    def slow() -> None:
        current().progress(40, "packing")
        current().progress(message="sending")
        said.set()
        assert go_on.wait(10)

    start(worker)
    run = slow.submit()
    assert said.wait(10)
    info = info_of(worker, run)
    go_on.set()

    assert (info.progress_percent, info.progress_message) == (40, "sending")
    assert run.result(10) is None


def test_progress_of_a_lost_lease_interrupts_the_handler(worker: Worker, start: Start) -> None:
    begun, lost = threading.Event(), threading.Event()
    seen: list[str] = []

    @worker.task
    def slow() -> None:
        begun.set()
        assert lost.wait(10)
        try:
            current().progress(50)
        except Interrupted as interrupted:
            seen.append(interrupted.reason)
            raise

    start(worker)
    run = slow.submit()
    assert begun.wait(10)
    run.cancel()
    lost.set()

    wait_until(lambda: seen, "the handler was interrupted")
    assert run.state() is PublicState.CANCELLED


def test_log_records_say_of_which_run_they_speak(
    worker: Worker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    @worker.task(lane="mail")
    def talkative() -> None:
        current().log.info("hello from %s", "inside")
        raise OSError("broken")

    caplog.set_level(logging.INFO)
    start(worker)
    run = talkative.submit()
    ended(worker, run)
    records = [record for record in caplog.records if hasattr(record, "execution_id")]

    assert [record.getMessage() for record in records] == [
        "hello from inside",
        f"talkative of {run.id} failed: OSError: broken",
    ]
    for record in records:
        fields = {name: vars(record)[name] for name in ("execution_id", "task", "lane", "attempt")}
        assert fields == {"execution_id": str(run.id), "task": "talkative", "lane": "mail", "attempt": 0}


# Steps


def test_a_step_runs_once_and_is_remembered_over_retries_and_replays(
    worker: Worker, start: Start, times: Iterator[int]
) -> None:
    charged: list[int] = []

    def charge(amount: int) -> datetime:
        charged.append(amount)
        return datetime(2030, 1, len(charged), tzinfo=UTC)

    @worker.task(retry=AT_ONCE)
    def pay(amount: int) -> datetime:
        when = current().step("charge", charge, amount)
        if next(times) < 3:
            raise OSError("after the charge")
        return when

    start(worker)
    run = pay.submit(7)

    assert run.result(10) == datetime(2030, 1, 1, tzinfo=UTC)
    worker.engine.replay_execution(ReplayExecutionArgs(execution_id=run.id))
    assert run.result(10) == datetime(2030, 1, 1, tzinfo=UTC)
    assert next(times) == 5
    assert charged == [7]
    assert info_of(worker, run).step_count == 1


def test_a_step_that_raises_is_not_remembered(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task(retry=AT_ONCE)
    def pay() -> int:
        return current().step("charge", charge)

    def charge() -> int:
        number = next(times)
        if number < 3:
            raise OSError
        return number

    start(worker)

    assert pay.submit().result(10) == 3


def test_steps_are_told_apart_by_their_names(worker: Worker, start: Start) -> None:
    @worker.task
    def count() -> list[int]:
        return [current().step(name, len, "x" * size) for size, name in enumerate(["a", "b", "a"])]

    start(worker)

    assert count.submit().result(10) == [0, 1, 0]


def test_a_step_may_be_any_callable(worker: Worker, start: Start) -> None:
    class Bank:
        def charge(self, amount: int) -> int:
            return amount + 1

    @worker.task
    def pay() -> list[Any]:
        step = current().step
        return [step("clock", time.time) > 0, step("method", Bank().charge, 1), step("lambda", lambda: {"a": [None]})]

    start(worker)

    assert pay.submit().result(10) == [True, 2, {"a": [None]}]


def test_nothing_that_a_step_closes_over_is_kept(worker: Worker, start: Start) -> None:
    import weakref

    class Big:
        pass

    kept: list[weakref.ref[Big]] = []

    @worker.task
    def pay() -> int:
        big = Big()
        kept.append(weakref.ref(big))
        return current().step("size", lambda: len(repr(big)))

    start(worker)

    assert pay.submit().result(10) > 0
    wait_until(lambda: kept[0]() is None, "what the step closed over is gone")


def test_a_step_that_cannot_be_recorded_fails_the_attempt(worker: Worker, start: Start) -> None:
    @worker.task
    def pay() -> Any:
        return current().step("odd", lambda: object())

    start(worker)

    with pytest.raises(ExecutionFailed, match="cannot be encoded"):
        pay.submit().result(10)
