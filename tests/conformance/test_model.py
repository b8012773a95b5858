"""Random operations by several owners: the engine answers like a small model, and its indexes hold what they must."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.partitions import partition_of_names, partition_of_uuid
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from tests.support.executions import upkeep_all
from tests.support.index_audit import audit, audit_lanes
from tests.support.lossy_store import empty_store_beside
from tests.support.model import Model, answer_of
from tests.support.model_partition import Partition, ms, take, told

START = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MOST_EXECUTIONS = 12
# A cluster has 16, and looking into each of them takes a round trip.
MOST_PARTITIONS = 5
KEYS = {"k1", "k2"}
FIXED = RetryPolicy(max_retries=2, backoff="fixed", initial=SECOND, jitter=False)
GROWING = RetryPolicy(max_retries=5, initial=2 * SECOND, maximum=5 * SECOND, jitter=False)
TIMEOUTS_ONLY = RetryPolicy(
    max_retries=1, backoff="fixed", initial=timedelta(), jitter=False,
    retryable_categories=frozenset({FailureClass.TIMEOUT}),
)  # fmt: skip
POLICIES = {
    "plain": ExecutionPolicy(),
    "retried": ExecutionPolicy(retry=FIXED, dedup_window=60 * SECOND),
    "retried ever later": ExecutionPolicy(retry=GROWING, max_reclaim_count=1),
    "timed": ExecutionPolicy(retry=TIMEOUTS_ONLY, attempt_timeout=10 * SECOND),
    "short-lived": ExecutionPolicy(execution_deadline=60 * SECOND, retention=20 * SECOND, dedup_window=10 * SECOND),
    "demanding": ExecutionPolicy(requires=frozenset({"gpu"}), max_replay_count=1, retry=FIXED),
    "never reclaimed": ExecutionPolicy(max_reclaim_count=0, retention=timedelta()),
}

lanes = st.sampled_from(("a", "b"))
workers = st.sampled_from(("w1", "w2", "w3"))
# Counted from the newest, which is the likeliest to be held still.
picks = st.sampled_from((0, 0, 0, 1, 1, 2, 3, 5, 8))
durations = st.sampled_from((0, 1, 5, 10, 31, 61)).map(lambda seconds: seconds * SECOND)


class Owners(RuleBasedStateMachine):
    """Three workers and an operator at work on an empty store."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        store = empty_store_beside(engine)
        self.engine = Engine(lambda: (store, min(engine.partitions, MOST_PARTITIONS)))
        self.engine.prepare(testing=True)
        self.clock = START
        self.engine.set_clock(self.clock)
        self.model = Model(self.engine.partitions, ms(START - datetime(1970, 1, 1, tzinfo=UTC)))
        self.handles: list[Handle] = []
        self.claims = 0
        self.made = 0
        self.repeat: Callable[[], None] | None = None
        # What a claim that had enough may or may not have visited: partition, and how it is if it was.
        self.maybe: dict[int, Partition] = {}

    # Helpers of the rules

    def both(self, ask: Callable[[], Any], expect: Callable[[], Any]) -> None:
        """Ask the engine and the model; they must agree. The next repeat asks both again."""

        def run() -> None:
            expected = answer_of(expect)
            self.model.keep_pace()
            assert answer_of(ask) == expected

        self.repeat = run
        run()

    def by_handle(self, pick: int, ask: Callable[[Handle], Any], expect: Callable[[Handle], Any]) -> None:
        """Make a call of a holder; `pick` 0 is the newest handle, most others are stale."""
        handle = self.handles[-1 - pick % len(self.handles)]
        self.both(lambda: ask(handle), lambda: expect(handle))

    def by_id(self, pick: int, ask: Callable[[ExecutionId], Any], expect: Callable[[ExecutionId], Any]) -> None:
        """Make a call of an operator."""
        known = sorted(each.id for each in self.model.executions())
        if known:
            target = known[-1 - pick % len(known)]
            self.both(lambda: ask(target), lambda: expect(target))

    def new_id(self, task: str, key: str | None) -> ExecutionId:
        """Return the next id of a fixed row: chance stays out of it, so that what fails can be made small."""
        self.made += 1
        uuid = UUID(int=self.made)
        count = self.engine.partitions
        names = ("default", task, key or "")
        partition = partition_of_uuid(uuid, count) if key is None else partition_of_names(names, count)
        return ExecutionId(partition, str(uuid))

    # Producers

    @initialize(policies=st.lists(st.sampled_from(sorted(POLICIES)), min_size=2, max_size=5), claims=st.integers(0, 4))
    def begin(self, policies: list[str], claims: int) -> None:
        """Create work first, so that few steps find nothing."""
        for policy in policies:
            self.create(policy=policy, key=None, lane="a", task="t1", priority=0, delay=None)
        for _ in range(claims):
            self.claim("w1", ("a",), frozenset({"gpu"}), 1, 60 * SECOND, named=False)

    @precondition(lambda self: len(self.model.executions()) < MOST_EXECUTIONS)
    @rule(
        lane=lanes,
        task=st.sampled_from(("t1", "t2")),
        policy=st.sampled_from(sorted(POLICIES)),
        priority=st.sampled_from((-1, 0, 5, 9000, 10_000)),
        delay=st.none() | durations,
        key=st.none() | st.sampled_from(sorted(KEYS)),
    )
    def create(self, policy: str, key: str | None, **wanted: Any) -> None:
        execution = self.new_id(wanted["task"], key)
        args = CreateExecutionArgs(
            policy=POLICIES[policy], idempotency_key=key, payload=b"1", execution_id=execution, **wanted
        )
        answer = self.engine.create_execution(args)
        assert answer == self.model.create(args, answer)
        self.repeat = None

    # Workers

    @rule(
        worker=workers,
        wanted=st.sampled_from((("a",), ("b",), ("a", "b"), ("b", "a"))),
        capabilities=st.sampled_from((frozenset(), frozenset({"gpu"}))),
        limit=st.integers(1, 3),
        lease=st.sampled_from((5 * SECOND, 60 * SECOND)),
        named=st.booleans(),
    )
    def claim(
        self,
        worker: str,
        wanted: tuple[str, ...],
        capabilities: frozenset[str],
        limit: int,
        lease: timedelta,
        named: bool,
    ) -> None:
        self.claims += 1
        request = ClaimRequest(
            lanes=[LaneRequest(lane=lane) for lane in wanted],
            policy=ClaimPolicy(worker_id=worker, worker_instance_id=worker, lease=lease),
            capabilities=capabilities,
            limit=limit,
            claim_id=str(UUID(int=self.claims)) if named else None,
        )
        claimed = self.engine.claim_many(request)
        if named and len(self.model.partitions) > 1:
            # It may be a repeat, so it first looks everywhere for what it got.
            self.model.upkeep()
        self.compare(claimed, request)
        self.model.keep_pace()
        self.handles += [each.handle for each in claimed]
        self.repeat = (lambda: self.claimed_again(request, claimed)) if claimed and named else None

    def compare(self, claimed: list[Claimed], request: ClaimRequest) -> None:
        """Compare what a claim got with what the model allows, partition by partition."""
        claim_id = claimed[0].handle.lease_id if claimed else ""
        left = request.limit
        visited = []
        for number in dict.fromkeys(each.execution_id.partition_number for each in claimed):
            got = [each for each in claimed if each.execution_id.partition_number == number]
            due = self.due_to(claim_id, request, left, self.model.partitions[number])
            assert [told(each, each_due) for each, each_due in zip(got, due, strict=True)] == due
            left -= len(got)
            visited.append(number)
        for number, partition in enumerate(self.model.partitions):
            if number not in visited:
                after = copy.deepcopy(partition)
                nothing = not self.due_to(claim_id, request, max(left, 1), after)
                assert nothing or left == 0, f"partition {number} was passed over"
                if nothing and left:
                    self.model.partitions[number] = after
                elif nothing:
                    self.maybe[number] = after

    def due_to(self, claim_id: str, request: ClaimRequest, limit: int, partition: Partition) -> list[dict[str, Any]]:
        """Return what a claim must get from a partition."""
        partition.visit(self.model.now)
        wanted = [lane.lane for lane in request.lanes if lane.lane not in self.model.paused]
        got = []
        for each in partition.offer(wanted, request.capabilities, self.model.now):
            policy = request.policy
            lease = ms(policy.lease)
            got.append(take(each, claim_id, policy.worker_instance_id, lease, self.model.now))
            if len(got) == limit:
                break
        return got

    def claimed_again(self, request: ClaimRequest, claimed: list[Claimed]) -> None:
        def by_id(each: Claimed) -> ExecutionId:
            return each.execution_id

        assert sorted(self.engine.claim_many(request), key=by_id) == sorted(claimed, key=by_id)

    @precondition(lambda self: self.handles)
    @rule(pick=picks)
    def renew(self, pick: int) -> None:
        self.by_handle(pick, self.engine.renew, self.model.renew)

    @precondition(lambda self: self.handles)
    @rule(pick=picks, percent=st.none() | st.integers(0, 100), message=st.none() | st.sampled_from(("", "half")))
    def progress(self, pick: int, percent: int | None, message: str | None) -> None:
        self.by_handle(
            pick,
            lambda handle: self.engine.progress(handle, percent, message),
            lambda handle: self.model.progress(handle, percent, message),
        )

    @precondition(lambda self: self.handles)
    @rule(pick=picks, name=st.sampled_from(("one", "two")), value=st.sampled_from((b"", b"1")))
    def record_step(self, pick: int, name: str, value: bytes) -> None:
        self.by_handle(
            pick,
            lambda handle: self.engine.record_step(handle, name, value),
            lambda handle: self.model.record_step(handle, name, value),
        )

    @precondition(lambda self: self.handles)
    @rule(pick=picks, payload=st.sampled_from((None, b"", b"1")))
    def complete(self, pick: int, payload: bytes | None) -> None:
        self.by_handle(
            pick,
            lambda handle: self.engine.complete(handle, payload),
            lambda handle: self.model.complete(handle, payload),
        )

    @precondition(lambda self: self.handles)
    @rule(pick=picks, kind=st.sampled_from(FailureClass), after=st.none() | durations)
    def fail(self, pick: int, kind: FailureClass, after: timedelta | None) -> None:
        self.by_handle(
            pick,
            lambda handle: self.engine.fail(handle, FailureReason(message="boom"), kind, after),
            lambda handle: self.model.fail(handle, kind, None if after is None else ms(after)),
        )

    @precondition(lambda self: self.handles)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        self.by_handle(pick, self.engine.cancel, self.model.cancel)

    @precondition(lambda self: self.handles)
    @rule(pick=picks, after=durations)
    def release(self, pick: int, after: timedelta) -> None:
        self.by_handle(
            pick,
            lambda handle: self.engine.release(handle, after),
            lambda handle: self.model.park(handle, "release", ms(after)),
        )

    @precondition(lambda self: self.handles)
    @rule(pick=picks, after=durations)
    def delay(self, pick: int, after: timedelta) -> None:
        self.by_handle(
            pick,
            lambda handle: self.engine.delay(handle, after),
            lambda handle: self.model.park(handle, "delay", ms(after)),
        )

    @precondition(lambda self: self.handles)
    @rule(pick=picks)
    def wait_children(self, pick: int) -> None:
        self.by_handle(pick, self.engine.wait_children, lambda handle: self.model.park(handle, "wait_children", 0))

    # Operators

    @rule(pick=picks)
    def cancel_execution(self, pick: int) -> None:
        self.by_id(
            pick,
            lambda target: self.engine.cancel_execution(CancelExecutionArgs(execution_id=target)),
            self.model.cancel_execution,
        )

    @rule(pick=picks, priority=st.sampled_from((0, 7, 9000)))
    def change_priority(self, pick: int, priority: int) -> None:
        self.by_id(
            pick,
            lambda target: self.engine.change_priority(ChangePriorityArgs(execution_id=target, priority=priority)),
            lambda target: self.model.change_priority(target, priority),
        )

    @rule(pick=picks, kept=st.sampled_from(({}, {"steps": "forget"}, {"from_step": "one"}, {"from_step": "two"})))
    def replay_execution(self, pick: int, kept: dict[str, Any]) -> None:
        self.by_id(
            pick,
            lambda target: self.engine.replay_execution(ReplayExecutionArgs(execution_id=target, **kept)),
            lambda target: self.model.replay(ReplayExecutionArgs(execution_id=target, **kept)),
        )

    @rule(pick=picks)
    def revoke_lease(self, pick: int) -> None:
        self.by_id(
            pick,
            lambda target: self.engine.revoke_lease(RevokeLeaseArgs(execution_id=target)),
            self.model.revoke,
        )

    @rule(pick=picks)
    def purge(self, pick: int) -> None:
        self.by_id(pick, self.engine.purge, self.model.purge)

    @rule(lane=lanes, paused=st.booleans())
    def pause_or_resume_lane(self, lane: str, paused: bool) -> None:
        if paused:
            self.both(lambda: self.engine.pause_lane(lane), lambda: self.model.pause(lane))
        else:
            self.both(lambda: self.engine.resume_lane(lane), lambda: self.model.resume(lane))

    # Everything else

    @precondition(lambda self: self.repeat is not None)
    @rule()
    def repeat_the_last_call(self) -> None:
        assert self.repeat is not None
        self.repeat()

    @rule(seconds=st.sampled_from((1, 5, 10, 61, 3600, 24 * 3600)))
    def move_the_clock(self, seconds: int) -> None:
        self.clock += seconds * SECOND
        self.model.now += seconds * 1000
        self.engine.set_clock(self.clock)
        self.repeat = None

    @rule()
    def run_upkeep(self) -> None:
        upkeep_all(self.engine)
        self.model.upkeep()
        self.repeat = None

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        for number, partition in enumerate(self.model.partitions):
            visited = self.maybe.pop(number, None)
            if visited is not None:
                try:
                    audit(self.engine, self.model, number, partition, KEYS)
                    continue
                except AssertionError:
                    self.model.partitions[number] = partition = visited
            audit(self.engine, self.model, number, partition, KEYS)
        audit_lanes(self.engine, self.model)


# A failing sequence is printed as it was drawn, since making it small takes minutes; Phase.shrink does so. On a cluster
# the audit of the partitions takes most of the time.
@pytest.mark.timeout(300)
def test_random_operations_by_several_owners_go_as_the_model_says(engine: Engine) -> None:
    class Here(Owners):
        def __init__(self) -> None:
            super().__init__(engine)

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate,),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
