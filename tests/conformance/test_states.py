"""States: the six dimensions that each operation writes, and the public state that follows from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import (
    AttemptState,
    BlockingReason,
    EligibilityState,
    LifecyclePhase,
    OwnershipState,
    PublicState,
    StateVector,
    TerminalOutcome,
)
from flowfabric_worker.engine.wire import encode_policy
from tests.conftest import Clock
from tests.support.executions import (
    BOOM,
    LEASE,
    claim_one,
    depths,
    info_of,
    request,
    running,
    upkeep_all,
)
from tests.support.lua_probe import probe
from tests.support.phases import HOUR, PHASES_LANE, Phase, Phases

# What each operation writes --------------------------------------------------------------------------------------

READY = "runnable unowned eligible_now waiting_for_worker none"
DELAYED = "runnable unowned not_eligible_until_time waiting_for_delay none"
BACKOFF = "runnable unowned not_eligible_until_time waiting_for_retry_backoff none"
RUNNING = "active leased not_applicable none none running_attempt"
LAPSED = "active lease_expired_reclaimable not_applicable waiting_for_worker none attempt_interrupted"
REVOKED = "active lease_revoked not_applicable waiting_for_worker none attempt_interrupted"


def ended(outcome: str, attempt: str = "attempt_terminal") -> str:
    return f"terminal unowned not_applicable none {outcome} {attempt}"


def due(phase: Phase) -> Phase:
    """Return the phase, and an hour later."""

    def later(phases: Phases) -> ExecutionId:
        execution_id = phase(phases)
        phases.clock.move(HOUR)
        upkeep_all(phases.engine)
        return execution_id

    return later


def claimed(phase: Phase, wait: timedelta = timedelta()) -> Phase:
    """Return the phase, and then claimed."""

    def then(phases: Phases) -> ExecutionId:
        execution_id = phase(phases)
        phases.clock.move(wait)
        assert claim_one(phases.engine, PHASES_LANE, worker="w2").execution_id == execution_id
        return execution_id

    return then


def held(act: Callable[[Engine, Claimed], object], policy: ExecutionPolicy | None = None) -> Phase:
    """Return what its holder does."""

    def then(phases: Phases) -> ExecutionId:
        work = running(phases.engine, lane=PHASES_LANE, policy=policy or ExecutionPolicy())
        act(phases.engine, work)
        return work.execution_id

    return then


def cancelled(phase: Phase) -> Phase:
    def then(phases: Phases) -> ExecutionId:
        execution_id = phase(phases)
        phases.engine.cancel_execution(CancelExecutionArgs(execution_id=execution_id))
        return execution_id

    return then


def replayed(phase: Phase) -> Phase:
    def then(phases: Phases) -> ExecutionId:
        execution_id = phase(phases)
        phases.engine.replay_execution(ReplayExecutionArgs(execution_id=execution_id))
        return execution_id

    return then


def exhausted(phases: Phases) -> ExecutionId:
    execution_id = running(phases.engine, lane=PHASES_LANE, policy=ExecutionPolicy(max_reclaim_count=0)).execution_id
    phases.clock.move(LEASE)
    assert phases.engine.claim_many(request(PHASES_LANE)) == []
    return execution_id


def overdue(phase: Phase) -> Phase:
    """Return the phase under a deadline that comes while it lasts."""

    def then(phases: Phases) -> ExecutionId:
        policy = ExecutionPolicy(execution_deadline=timedelta(minutes=30))
        execution_id = phase(Phases(phases.engine, phases.clock, {"policy": policy}))
        phases.clock.move(HOUR)
        upkeep_all(phases.engine)
        return execution_id

    return then


def fail_at_once(engine: Engine, work: Claimed) -> None:
    engine.fail(work.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())


def time_out(policy: ExecutionPolicy) -> Phase:
    def then(phases: Phases) -> ExecutionId:
        execution_id = running(phases.engine, lane=PHASES_LANE, policy=policy).execution_id
        phases.clock.move(timedelta(seconds=5))
        upkeep_all(phases.engine)
        return execution_id

    return then


RETRIES = RetryPolicy(initial=HOUR, maximum=HOUR, jitter=False)
TIMEOUT = timedelta(seconds=5)

WRITTEN: dict[str, tuple[Phase, str, PublicState]] = {
    "create": (Phases.waiting, f"{READY} pending_first_attempt", PublicState.WAITING),
    "create delayed": (Phases.delayed, f"{DELAYED} pending_first_attempt", PublicState.DELAYED),
    "reserve": (Phases.reserved, f"{READY} pending_first_attempt", PublicState.WAITING),
    "delay is over": (due(Phases.delayed), f"{READY} pending_first_attempt", PublicState.WAITING),
    "claim": (Phases.active, RUNNING, PublicState.ACTIVE),
    "renew": (held(lambda engine, work: engine.renew(work.handle)), RUNNING, PublicState.ACTIVE),
    "progress": (held(lambda engine, work: engine.progress(work.handle, 1)), RUNNING, PublicState.ACTIVE),
    "record_step": (held(lambda engine, work: engine.record_step(work.handle, "s", b"")), RUNNING, PublicState.ACTIVE),
    "complete": (Phases.completed, ended("success"), PublicState.COMPLETED),
    "fail with retries": (Phases.backing_off, f"{BACKOFF} pending_retry_attempt", PublicState.DELAYED),
    "fail with a retry at once": (
        held(fail_at_once, ExecutionPolicy(retry=RETRIES)), f"{READY} pending_retry_attempt", PublicState.WAITING,
    ),
    "backoff is over": (due(Phases.backing_off), f"{READY} pending_retry_attempt", PublicState.WAITING),
    "claim a retry": (claimed(Phases.backing_off, HOUR), RUNNING, PublicState.ACTIVE),
    "fail for good": (Phases.failed, ended("failed"), PublicState.FAILED),
    "fail as cancelled": (
        held(lambda engine, work: engine.fail(work.handle, BOOM, FailureClass.CANCELLED)),
        ended("cancelled"), PublicState.CANCELLED,
    ),
    "cancel by the holder": (Phases.cancelled_by_holder, ended("cancelled"), PublicState.CANCELLED),
    "cancel what never ran": (Phases.cancelled, ended("cancelled", "pending_first_attempt"), PublicState.CANCELLED),
    "cancel what runs": (cancelled(Phases.active), ended("cancelled"), PublicState.CANCELLED),
    "cancel a backoff": (cancelled(Phases.backing_off), ended("cancelled"), PublicState.CANCELLED),
    "cancel what lapsed": (cancelled(Phases.lapsed), ended("cancelled"), PublicState.CANCELLED),
    "cancel what was revoked": (cancelled(Phases.revoked), ended("cancelled"), PublicState.CANCELLED),
    "release": (Phases.interrupted, f"{READY} attempt_interrupted", PublicState.WAITING),
    "release for later": (
        held(lambda engine, work: engine.release(work.handle, HOUR)), f"{DELAYED} attempt_interrupted",
        PublicState.DELAYED,
    ),
    "claim what was released": (claimed(Phases.interrupted), RUNNING, PublicState.ACTIVE),
    "delay": (Phases.parked, f"{DELAYED} attempt_interrupted", PublicState.DELAYED),
    "the holder's delay is over": (due(Phases.parked), f"{READY} attempt_interrupted", PublicState.WAITING),
    "wait for no children": (
        held(lambda engine, work: engine.wait_children(work.handle)), f"{READY} attempt_interrupted",
        PublicState.WAITING,
    ),
    "lease lapse": (Phases.lapsed, LAPSED, PublicState.ACTIVE),
    "reclaim": (claimed(Phases.lapsed), RUNNING, PublicState.ACTIVE),
    "reclaim once too often": (exhausted, ended("failed"), PublicState.FAILED),
    "revoke": (Phases.revoked, REVOKED, PublicState.ACTIVE),
    "claim what was revoked": (claimed(Phases.revoked), RUNNING, PublicState.ACTIVE),
    "attempt timeout": (time_out(ExecutionPolicy(attempt_timeout=TIMEOUT)), ended("failed"), PublicState.FAILED),
    "attempt timeout with retries": (
        time_out(ExecutionPolicy(attempt_timeout=TIMEOUT, retry=RETRIES)), f"{BACKOFF} pending_retry_attempt",
        PublicState.DELAYED,
    ),
    "deadline of what never ran": (
        overdue(Phases.waiting), ended("expired", "pending_first_attempt"), PublicState.EXPIRED,
    ),
    "deadline of what runs": (overdue(Phases.active), ended("expired"), PublicState.EXPIRED),
    "deadline of what lapsed": (overdue(Phases.lapsed), ended("expired"), PublicState.EXPIRED),
    "deadline of what is parked": (overdue(Phases.parked), ended("expired"), PublicState.EXPIRED),
    "replay": (replayed(Phases.completed), f"{READY} pending_replay_attempt", PublicState.WAITING),
    "replay what never ran": (replayed(Phases.cancelled), f"{READY} pending_replay_attempt", PublicState.WAITING),
    "claim a replay": (claimed(replayed(Phases.failed)), RUNNING, PublicState.ACTIVE),
}  # fmt: skip


@pytest.mark.parametrize("operation", WRITTEN)
def test_each_operation_writes_all_six_dimensions(engine: Engine, clock: Clock, operation: str) -> None:
    phase, written, public = WRITTEN[operation]
    info = info_of(engine, phase(Phases(engine, clock)))
    assert info.state == StateVector.parse(written)
    assert info.public_state is public
    assert depths(engine, PHASES_LANE) == {public: 1}
    assert broken_rules(info.state) == []


# Impossible states ---------------------------------------------------------------------------------------------------


def broken_rules(state: StateVector) -> list[str]:
    """Return the rules of legal combinations that a state breaks."""
    terminal = state.lifecycle_phase is LifecyclePhase.TERMINAL
    active = state.lifecycle_phase is LifecyclePhase.ACTIVE
    runnable = state.lifecycle_phase is LifecyclePhase.RUNNABLE
    ready = state.eligibility_state is EligibilityState.ELIGIBLE_NOW
    forbidden = {
        "held but not active": not active and state.ownership_state is not OwnershipState.UNOWNED,
        "active but not leased": active and state.ownership_state is OwnershipState.UNOWNED,
        "ended without an outcome, or the other way round": terminal
        is (state.terminal_outcome is TerminalOutcome.NONE),
        "active before its first attempt": active and state.attempt_state is AttemptState.PENDING_FIRST_ATTEMPT,
        "eligible although not runnable": ready and not runnable,
        "runnable with a running attempt": runnable and state.attempt_state is AttemptState.RUNNING_ATTEMPT,
        "runnable without an eligibility": runnable and state.eligibility_state is EligibilityState.NOT_APPLICABLE,
    }
    return [rule for rule, broken in forbidden.items() if broken]


ALLOWED_STEPS = {
    LifecyclePhase.RUNNABLE: {LifecyclePhase.RUNNABLE, LifecyclePhase.ACTIVE, LifecyclePhase.TERMINAL},
    LifecyclePhase.ACTIVE: {LifecyclePhase.ACTIVE, LifecyclePhase.RUNNABLE, LifecyclePhase.TERMINAL},
    LifecyclePhase.TERMINAL: {LifecyclePhase.TERMINAL, LifecyclePhase.RUNNABLE},
}


class Walk:
    """One execution on which random operations are tried; what is refused does not matter here."""

    STEPS = (
        "claim", "complete", "fail", "cancel", "release", "delay", "wait_children", "renew", "cancel_execution",
        "replay", "revoke", "wait_a_second", "wait_for_the_lease", "upkeep",
    )  # fmt: skip

    REFUSALS = (
        "execution_not_active", "execution_not_terminal", "lease_expired", "lease_revoked", "stale_lease",
        "max_replays_exhausted",
    )  # fmt: skip

    def __init__(self, engine: Engine, clock: Clock) -> None:
        policy = ExecutionPolicy(
            retry=RetryPolicy(max_retries=2, initial=timedelta(seconds=1)),
            attempt_timeout=timedelta(seconds=40),
            max_reclaim_count=2,
        )
        self.engine, self.clock = engine, clock
        self.work = running(engine, policy=policy)
        self.lane = self.work.handle.lane

    def try_to(self, step: str) -> None:
        try:
            getattr(self, step)()
        except EngineError as error:
            if error.code not in self.REFUSALS:
                raise

    def claim(self) -> None:
        for work in self.engine.claim_many(request(self.lane)):
            self.work = work

    def complete(self) -> None:
        self.engine.complete(self.work.handle)

    def fail(self) -> None:
        self.engine.fail(self.work.handle, BOOM, FailureClass.TRANSIENT)

    def cancel(self) -> None:
        self.engine.cancel(self.work.handle)

    def release(self) -> None:
        self.engine.release(self.work.handle)

    def delay(self) -> None:
        self.engine.delay(self.work.handle, timedelta(seconds=1))

    def wait_children(self) -> None:
        self.engine.wait_children(self.work.handle)

    def renew(self) -> None:
        self.engine.renew(self.work.handle)

    def cancel_execution(self) -> None:
        self.engine.cancel_execution(CancelExecutionArgs(execution_id=self.work.execution_id))

    def replay(self) -> None:
        self.engine.replay_execution(ReplayExecutionArgs(execution_id=self.work.execution_id))

    def revoke(self) -> None:
        self.engine.revoke_lease(RevokeLeaseArgs(execution_id=self.work.execution_id))

    def wait_a_second(self) -> None:
        self.clock.move(timedelta(seconds=1))

    def wait_for_the_lease(self) -> None:
        self.clock.move(LEASE)

    def upkeep(self) -> None:
        upkeep_all(self.engine)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(Walk.STEPS), max_size=25))
def test_no_sequence_of_operations_leads_into_an_illegal_state(engine: Engine, clock: Clock, steps: list[str]) -> None:
    walk = Walk(engine, clock)
    before = info_of(engine, walk.work.execution_id)
    for step in steps:
        walk.try_to(step)
        after = info_of(engine, walk.work.execution_id)
        assert broken_rules(after.state) == []
        assert after.state.lifecycle_phase in ALLOWED_STEPS[before.state.lifecycle_phase]
        assert after.total_attempt_count >= before.total_attempt_count
        assert (after.current_lease is not None) is (after.public_state is PublicState.ACTIVE)
        # The counters of the lane, which are kept by Lua's rule, agree with Python's.
        assert depths(engine, walk.lane) == {after.public_state: 1}
        before = after


# One rule in two languages ---------------------------------------------------------------------------------------


def test_lua_and_python_derive_the_same_public_state_of_every_vector(engine: Engine) -> None:
    every = [
        " ".join(words)
        for words in itertools.product(
            LifecyclePhase, OwnershipState, EligibilityState, (BlockingReason.NONE, BlockingReason.PAUSED_BY_POLICY),
            TerminalOutcome, (AttemptState.NONE, AttemptState.RUNNING_ATTEMPT),
        )
    ]  # fmt: skip
    with probe(engine) as lua:
        for first in range(0, len(every), 500):
            batch = every[first : first + 500]
            derived = [
                word.decode() for word in lua("public_state", *(StateVector.parse(state).encode() for state in batch))
            ]
            assert derived == [StateVector.parse(state).public_state for state in batch]


@st.composite
def backoffs(draw: st.DrawFn) -> RetryPolicy:
    return RetryPolicy(
        backoff=draw(st.sampled_from(["exponential", "fixed"])),
        initial=timedelta(milliseconds=draw(st.integers(0, 10**12))),
        maximum=timedelta(milliseconds=draw(st.integers(0, 10**12))),
        multiplier=draw(st.floats(1, 1000)),
        jitter=draw(st.booleans()),
    )


def test_lua_and_python_wait_equally_long_before_a_retry(engine: Engine) -> None:
    with probe(engine) as lua:

        @settings(max_examples=200, deadline=None)
        @given(
            policy=backoffs(),
            retry_count=st.integers(0, 50) | st.integers(0, 1_000_000),
            draw=st.floats(0, 1, exclude_max=True),
        )
        def equal(policy: RetryPolicy, retry_count: int, draw: float) -> None:
            stored = encode_policy(ExecutionPolicy(retry=policy))
            assert int(lua("backoff", stored, retry_count, repr(draw))) == policy.delay_ms(retry_count, draw)

        equal()
