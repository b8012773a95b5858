"""Payloads and results that cannot be decoded or kept, which fail an execution for good."""

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker import (
    FailureClass,
    Limits,
    RetryPolicy,
    Worker,
)
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from tests.support.observation import ended
from tests.worker.conftest import Start

AT_ONCE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(), jitter=False)


def test_a_payload_that_does_not_decode_fails_for_good_without_running(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE)
    def double(number: int) -> int:
        raise AssertionError(f"it ran with {number}")

    payloads = [b"not json", b'{"a": 1}', b'[["one"]]', b"[[1, 2]]", None]
    ids = [
        worker.engine.create_execution(
            CreateExecutionArgs(
                lane="default",
                task="shop.double",
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

    args = CreateExecutionArgs(lane="default", task="shop.double", payload=b"[[1]]", codec="pickle")
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
