"""reads: why an execution does not run, in a word for programs and a sentence for people."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import ClaimForWorkerArgs
from flowfabric_worker.engine.types.conditions import (
    AllOf,
    OperatorOnly,
    ResumeCondition,
    SignalMatcher,
    Single,
    TimeoutOnly,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.suspension import SuspendArgs
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.conftest import Clock
from tests.support.executions import BOOM, LANE, TASK, created, creation, running, tenant
from tests.support.flows import Run, graph_of
from tests.support.suspensions import signal, suspend

SINCE = "since 2030-01-01 00:00:00+00:00 (waiting_for_signal)"
SECOND = timedelta(seconds=1)
RETRY_IN_A_SECOND = ExecutionPolicy(retry=RetryPolicy(max_retries=3, backoff="fixed", initial=SECOND, jitter=False))


def explained(engine: Engine, execution_id: ExecutionId) -> tuple[str, str]:
    explanation = engine.explain_execution(execution_id)
    assert explanation is not None
    assert explanation.execution_id == execution_id
    assert explanation.public_state == engine.read_execution_state(execution_id)
    return explanation.code, explanation.text


def offer(engine: Engine, instance: str = "w1", **changes: Any) -> None:
    engine.register_worker(
        RegisterWorkerArgs(
            **{"worker_id": "w", "worker_instance_id": instance, "lanes": (LANE,), "tasks": (TASK,), **changes}
        )
    )


def test_a_running_execution_is_explained_by_its_lease(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    clock.move(SECOND)

    assert explained(engine, claimed.execution_id) == ("running", "It runs at w1; its lease holds for 29.0 s.")


def test_an_expired_lease_is_explained_before_its_expiry_was_handled(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    clock.move(31 * SECOND)

    code, text = explained(engine, claimed.execution_id)

    assert code == "lapsed"
    assert "w1 ran out" in text


def test_an_ended_execution_is_explained_by_its_end(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    engine.complete(claimed.handle)

    assert explained(engine, claimed.execution_id) == (
        "ended",
        f"It ended completed at {clock.now.isoformat(' ', 'seconds')}.",
    )


def test_a_delay_and_a_backoff_are_explained_by_what_is_left_of_them(engine: Engine, clock: Clock) -> None:
    delayed = created(engine, delay=5 * SECOND)
    failed = running(engine, policy=RETRY_IN_A_SECOND)
    engine.fail(failed.handle, BOOM, FailureClass.TRANSIENT)
    clock.move(SECOND / 2)

    assert explained(engine, delayed) == ("delayed", "It is delayed; it may start in 4.5 s.")
    assert explained(engine, failed.execution_id) == (
        "delayed", "Attempt 1 failed (boom); it is tried again in 0.5 s.",
    )  # fmt: skip


def test_a_reservation_is_explained_by_whom_it_is_for(engine: Engine) -> None:
    execution = created(engine)
    engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="pool", worker_instance_id="pool-1"))

    code, text = explained(engine, execution)

    assert code == "reserved"
    assert "pool" in text


def test_a_paused_lane_explains_its_work_with_and_without_workers(engine: Engine) -> None:
    execution = created(engine)
    offer(engine)
    engine.pause_lane(LANE)

    assert explained(engine, execution)[0] == "lane_paused"


def test_a_lack_of_workers_explains_waiting_work(engine: Engine, clock: Clock) -> None:
    execution = created(engine)
    assert explained(engine, execution) == ("no_worker", "No worker is alive; start one.")

    offer(engine)
    clock.move(timedelta(minutes=2))
    assert explained(engine, execution) == ("no_worker", "No worker is alive; start one.")


def test_the_first_thing_that_living_workers_lack_explains_waiting_work(engine: Engine) -> None:
    execution = created(engine, policy=ExecutionPolicy(requires=frozenset({"eu", "gpu"})))
    lacks: list[tuple[dict[str, Any], str, str]] = [
        ({"lanes": ("other",)}, "no_worker", "None of the 1 living workers serves the lane 'mail'."),
        ({"tasks": ("other",)}, "no_handler", "knows the task 'send'"),
        ({"capabilities": ("gpu",)}, "no_capable_worker", "(eu, gpu)"),
        ({"capabilities": ("gpu", "eu", "x")}, "queued", "0 of 1 of its kind go before it"),
    ]

    for changes, code, words in lacks:
        offer(engine, **changes)
        found, text = explained(engine, execution)
        assert found == code
        assert words in text


def test_work_whose_lease_was_revoked_is_explained_like_any_that_is_ready(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    offer(engine)
    engine.revoke_lease(RevokeLeaseArgs(execution_id=claimed.execution_id))

    assert explained(engine, claimed.execution_id)[0] == "queued"


def test_workers_of_another_namespace_explain_nothing(engine: Engine) -> None:
    execution = created(engine)
    offer(tenant(engine, "other"))

    assert explained(engine, execution)[0] == "no_worker"


def test_a_suspended_execution_is_explained_by_what_it_waits_for(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    condition = AllOf([Single("a", SignalMatcher("yes")), Single("b")])
    a, _ = suspend(engine, claimed, "a", "b", condition=condition, timeout=2 * SECOND)
    signal(engine, claimed.execution_id, a, "yse")
    clock.move(SECOND)

    assert explained(engine, claimed.execution_id) == (
        "suspended",
        f"It waits for signals at 'a' ('yes'), 'b' {SINCE}, for 1.0 s more: then it fails; "
        "1 signal came that matched nothing.",
    )


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (OperatorOnly(), f"It waits for an operator to resume it {SINCE}."),
        (TimeoutOnly(), f"It waits for its time {SINCE}, for 1:00:00 more: then it fails."),
    ],
)
def test_a_suspension_that_no_signal_resumes_is_explained(
    engine: Engine, clock: Clock, condition: ResumeCondition, text: str
) -> None:
    claimed = running(engine)
    timeout = timedelta(hours=1) if isinstance(condition, TimeoutOnly) else None
    engine.suspend(claimed.handle, SuspendArgs(condition=condition, timeout=timeout))

    assert explained(engine, claimed.execution_id)[1] == text


def test_a_member_of_a_flow_waits_for_its_upstream_executions(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "b")))
    code, text = explained(engine, run.ids["b"])
    assert code == "waiting_children"
    assert (
        text == f"It waits until its upstream executions in the flow {run.flow_id} have ended; list_edges names them."
    )


def test_a_parent_waits_for_its_children(engine: Engine) -> None:
    handle = running(engine).handle
    engine.spawn(handle, "a", creation())
    engine.wait_children(handle)
    assert explained(engine, handle.execution_id) == ("waiting_children", "It waits for its children.")
