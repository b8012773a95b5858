"""Idempotency keys that stand only until the execution begins, or until it ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.submission import Created, CreateExecutionResult, Duplicate
from tests.conftest import Clock
from tests.support.executions import claim_one, creation

SECOND = timedelta(seconds=1)
WHILE_WAITING = ExecutionPolicy(
    frees_key=True, retry=RetryPolicy(max_retries=1, backoff="fixed", initial=SECOND, jitter=False)
)
WHILE_RUNNING = ExecutionPolicy(dedup_window=timedelta(milliseconds=1))


def submit(engine: Engine, policy: ExecutionPolicy, payload: bytes = b"{}") -> CreateExecutionResult:
    return engine.create_execution(creation(idempotency_key="k", policy=policy, payload=payload))


def test_of_sixteen_submissions_at_once_one_waits(engine: Engine) -> None:
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda _: submit(engine, WHILE_WAITING), range(16)))

    (made,) = [each for each in results if isinstance(each, Created)]
    others = [each for each in results if isinstance(each, Duplicate)]
    assert len(others) == 15
    assert {(each.execution_id, each.same_request) for each in others} == {(made.execution_id, True)}


def test_one_more_may_wait_once_the_first_has_begun(engine: Engine, clock: Clock) -> None:
    first = submit(engine, WHILE_WAITING)
    held = claim_one(engine)
    second = submit(engine, WHILE_WAITING, b"[1]")
    assert isinstance(second, Created)
    assert submit(engine, WHILE_WAITING) == Duplicate(execution_id=second.execution_id, same_request=False)

    # The first one loses its worker, or fails and is tried again: the key is that of the second one.
    clock.move(timedelta(minutes=1))
    held = claim_one(engine)
    assert held.execution_id == first.execution_id
    engine.fail(held.handle, FailureReason(message="boom"), FailureClass.TRANSIENT)
    clock.move(SECOND)
    engine.complete(claim_one(engine).handle, None)
    assert isinstance(submit(engine, WHILE_WAITING), Duplicate)
    assert claim_one(engine).execution_id == second.execution_id
    assert isinstance(submit(engine, WHILE_WAITING), Created)


def test_none_may_wait_while_the_first_runs_and_one_after_its_end(engine: Engine, clock: Clock) -> None:
    submit(engine, WHILE_RUNNING)
    clock.move(timedelta(hours=1))
    held = claim_one(engine)
    assert isinstance(submit(engine, WHILE_RUNNING), Duplicate)

    engine.complete(held.handle, None)
    assert isinstance(submit(engine, WHILE_RUNNING), Created)
