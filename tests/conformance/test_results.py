"""feed: waiting for the end of one execution, without polling and without a connection for each who waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import pytest
from redis import Redis

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import NotFoundError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.attempts import Completion, FailureReason
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import TerminalOutcome
from tests.conftest import Clock
from tests.support.executions import (
    BOOM,
    claim_one,
    created,
    creation,
    raw_client,
    raw_key,
    refused,
    request,
    running,
    upkeep_all,
)
from tests.support.servers import ValkeyServer, wait_until

SECOND = timedelta(seconds=1)
LONG = 20 * SECOND


@contextmanager
def waiting(engine: Engine, *ids: ExecutionId) -> Iterator[list[Future[ExecutionOutcome]]]:
    """Provide the outcomes of executions that one thread each waits for; all of them wait when the block begins."""
    with ThreadPoolExecutor(len(ids)) as pool:
        futures = [pool.submit(engine.wait_for_result, each, LONG) for each in ids]
        wait_until(lambda: all(watched(engine, each) for each in ids), "every caller waits")
        yield futures


def watched(engine: Engine, execution_id: ExecutionId) -> bool:
    """Return True if a caller waits for an execution."""
    key = raw_key(engine, execution_id.partition_number, f"x:{execution_id.uuid}")
    return bool(raw_client(engine, execution_id.partition_number).hget(key, "watchers"))


# Results of claims


def test_the_result_of_an_ended_execution_is_returned_at_once(engine: Engine) -> None:
    claimed = running(engine, codec="json")
    engine.complete(claimed.handle, b"5")

    outcome = engine.wait_for_result(claimed.execution_id, timedelta())

    assert outcome == ExecutionOutcome(
        execution_id=claimed.execution_id, outcome=TerminalOutcome.SUCCESS, result=b"5", codec="json"
    )


@pytest.mark.parametrize("result", [None, b"", b"\x00"])
def test_none_and_nothing_and_bytes_are_different_results(engine: Engine, result: bytes | None) -> None:
    claimed = running(engine)
    engine.complete(claimed.handle, result)

    assert engine.wait_for_result(claimed.execution_id).result == result


def test_a_failure_comes_with_its_reason(engine: Engine) -> None:
    claimed = running(engine)
    engine.fail(claimed.handle, FailureReason(message="boom", detail=b"trace\xff"), FailureClass.PERMANENT)

    outcome = engine.wait_for_result(claimed.execution_id)

    assert (outcome.outcome, outcome.error, outcome.error_class, outcome.detail, outcome.result) == (
        TerminalOutcome.FAILED, "boom", "permanent", b"trace\xff", None,
    )  # fmt: skip


def test_a_success_after_a_failure_says_nothing_of_the_failure(engine: Engine) -> None:
    policy = ExecutionPolicy(retry=RetryPolicy(max_retries=1, initial=timedelta(), backoff="fixed"))
    claimed = running(engine, policy=policy)
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)
    engine.complete(claim_one(engine, claimed.handle.lane).handle, b"5")

    outcome = engine.wait_for_result(claimed.execution_id)

    assert (outcome.result, outcome.error, outcome.error_class, outcome.detail) == (b"5", None, None, b"")


def test_a_cancelled_execution_comes_with_the_reason_of_its_end(engine: Engine) -> None:
    execution = created(engine)
    engine.cancel_execution(CancelExecutionArgs(execution_id=execution, reason="no need"))

    outcome = engine.wait_for_result(execution)

    assert (outcome.outcome, outcome.error) == (TerminalOutcome.CANCELLED, "no need")


def test_waiting_for_an_unknown_execution_is_refused(engine: Engine) -> None:
    with refused("execution_not_found"):
        engine.wait_for_result(ExecutionId.mint(engine.partitions), LONG)
    with refused("execution_not_found"):
        engine.read_outcome(ExecutionId.mint(engine.partitions))


def test_the_result_of_a_purged_execution_is_gone(engine: Engine) -> None:
    claimed = running(engine)
    engine.complete(claimed.handle, b"5")
    engine.purge(claimed.execution_id)

    with refused("execution_not_found"):
        engine.wait_for_result(claimed.execution_id, LONG)


def test_an_execution_that_has_not_ended_has_no_outcome(engine: Engine) -> None:
    assert engine.read_outcome(created(engine)) is None
    assert engine.read_outcome(running(engine).execution_id) is None


def test_a_wait_that_is_over_says_so_and_may_be_repeated(engine: Engine) -> None:
    claimed = running(engine)
    began = time.monotonic()

    with refused("timeout") as caught:
        engine.wait_for_result(claimed.execution_id, timedelta(milliseconds=100))

    assert 0.1 <= time.monotonic() - began < 2
    assert caught.value.retryable
    assert caught.value.details["execution_id"] == str(claimed.execution_id)
    engine.complete(claimed.handle)
    assert engine.wait_for_result(claimed.execution_id).outcome == TerminalOutcome.SUCCESS


# Waking

Ending = Callable[[Engine, Clock, Claimed], object]


def _expire(engine: Engine, clock: Clock, claimed: Claimed) -> None:
    clock.move(timedelta(hours=1))
    upkeep_all(engine)


def _time_out(engine: Engine, clock: Clock, claimed: Claimed) -> None:
    clock.move(2 * SECOND)
    upkeep_all(engine)


def _exhaust(engine: Engine, clock: Clock, claimed: Claimed) -> None:
    engine.release(claimed.handle)
    claim_one(engine, claimed.handle.lane, lease=SECOND)
    clock.move(SECOND)
    engine.claim_many(request(claimed.handle.lane))


def _cancel(engine: Engine, clock: Clock, claimed: Claimed) -> None:
    engine.cancel_execution(CancelExecutionArgs(execution_id=claimed.execution_id))


ENDINGS: dict[str, tuple[Ending, TerminalOutcome]] = {
    "completed": (lambda engine, _, claimed: engine.complete(claimed.handle), TerminalOutcome.SUCCESS),
    "failed": (
        lambda engine, _, claimed: engine.fail(claimed.handle, BOOM, FailureClass.PERMANENT),
        TerminalOutcome.FAILED,
    ),
    "given up": (lambda engine, _, claimed: engine.cancel(claimed.handle), TerminalOutcome.CANCELLED),
    "cancelled": (_cancel, TerminalOutcome.CANCELLED),
    "past its deadline": (_expire, TerminalOutcome.EXPIRED),
    "timed out": (_time_out, TerminalOutcome.FAILED),
    "reclaimed too often": (_exhaust, TerminalOutcome.FAILED),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_waiter_is_woken_by_every_outcome(engine: Engine, clock: Clock, name: str) -> None:
    end, expected = ENDINGS[name]
    policy = ExecutionPolicy(
        attempt_timeout=2 * SECOND if name == "timed out" else None,
        execution_deadline=timedelta(hours=1),
        max_reclaim_count=0,
    )
    claimed = running(engine, policy=policy, lease=timedelta(minutes=1))

    with waiting(engine, claimed.execution_id) as (outcome,):
        began = time.monotonic()
        end(engine, clock, claimed)

        assert outcome.result(5).outcome == expected
        assert time.monotonic() - began < 2


def test_a_retry_wakes_no_waiting_caller(engine: Engine) -> None:
    policy = ExecutionPolicy(retry=RetryPolicy(max_retries=1, initial=timedelta(), backoff="fixed"))
    claimed = running(engine, policy=policy)

    with waiting(engine, claimed.execution_id) as (outcome,):
        engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)
        again = claim_one(engine, claimed.handle.lane)
        assert not outcome.done()
        engine.complete(again.handle, b"second")

        assert outcome.result(5).result == b"second"


def test_a_waiter_after_a_replay_gets_the_new_result(engine: Engine) -> None:
    claimed = running(engine)
    engine.complete(claimed.handle, b"old")
    engine.replay_execution(ReplayExecutionArgs(execution_id=claimed.execution_id))

    with waiting(engine, claimed.execution_id) as (outcome,):
        engine.complete(claim_one(engine, claimed.handle.lane).handle, b"new")

        assert outcome.result(5).result == b"new"


def test_several_threads_and_several_engines_wait_for_the_same_execution(engine: Engine, store_url: str) -> None:
    claimed = running(engine)
    elsewhere = open_engine(store_url)

    with waiting(engine, *[claimed.execution_id] * 3) as here, waiting(elsewhere, claimed.execution_id) as there:
        engine.complete(claimed.handle, b"5")

        assert [outcome.result(5).result for outcome in here + there] == [b"5"] * 4
    elsewhere.close()


def test_an_ended_execution_has_no_watchers_left(engine: Engine) -> None:
    claimed = running(engine)

    with waiting(engine, claimed.execution_id) as (outcome,):
        engine.complete(claimed.handle)
        outcome.result(5)

    assert not watched(engine, claimed.execution_id)


# Costs


def calls_of(client: Redis) -> int:
    """Return how many functions a server ran so far."""
    stats = client.info("commandstats")
    return int(stats.get("cmdstat_fcall", {"calls": 0})["calls"])


@pytest.fixture
def own_engine(valkey: ValkeyServer, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = open_engine(f"{valkey.url}?prefix={request.node.name[:60]}")
    engine.prepare()
    yield engine
    engine.close()


def test_200_waiters_share_a_connection_and_do_not_poll(own_engine: Engine, valkey: ValkeyServer) -> None:
    own_engine.create_executions([creation() for _ in range(200)])
    claimed = own_engine.claim_many(request(limit=200))
    observer = valkey.client()
    connections, calls = len(observer.client_list()), calls_of(observer)

    with ThreadPoolExecutor(200) as pool:
        outcomes = []
        for each in claimed:
            outcomes.append(pool.submit(own_engine.wait_for_result, each.execution_id, LONG))
            # Run the waits one after the other, so that only their cost is counted.
            record = raw_key(own_engine, 0, f"x:{each.execution_id.uuid}")
            wait_until(partial(observer.hget, record, "watchers"), f"a caller waits for {each.execution_id}")
        assert len(observer.client_list()) - connections <= 2
        assert calls_of(observer) - calls <= 2 * 200
        calls = calls_of(observer)
        time.sleep(0.5)
        assert calls_of(observer) == calls

        own_engine.complete_many([Completion(handle=each.handle, payload=b"5") for each in claimed])
        assert [outcome.result(10).result for outcome in outcomes] == [b"5"] * 200

    # Each caller reads its result; on a busy machine, some look before they are told.
    assert calls_of(observer) - calls <= 2 * 200


def test_a_wait_survives_the_loss_of_the_connection_that_listens(own_engine: Engine, valkey: ValkeyServer) -> None:
    first, second = running(own_engine), running(own_engine)

    with waiting(own_engine, first.execution_id, second.execution_id) as (one, two):
        # An end while nothing listens is noticed after the reconnect.
        listener = subscribers(valkey)
        valkey.client().execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        own_engine.complete(first.handle, b"1")
        # At once, not when it would look again by itself.
        assert one.result(2).result == b"1"
        wait_until(lambda: subscribers(valkey) - listener, "it listens again")
        own_engine.complete(second.handle, b"2")

        assert two.result(5).result == b"2"


def subscribers(server: ValkeyServer) -> set[str]:
    """Return the connections that listen."""
    return {client["id"] for client in server.client().client_list(_type="pubsub")}


def test_a_wait_for_what_is_removed_meanwhile_ends_with_not_found(own_engine: Engine, valkey: ValkeyServer) -> None:
    claimed = running(own_engine)

    with waiting(own_engine, claimed.execution_id) as (outcome,):
        raw_client(own_engine).delete(raw_key(own_engine, 0, f"x:{claimed.execution_id.uuid}"))
        valkey.client().execute_command("CLIENT", "KILL", "TYPE", "pubsub")

        with pytest.raises(NotFoundError):
            outcome.result(5)
