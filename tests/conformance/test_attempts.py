"""What the holder of a lease does with its execution: progress, results, handing back, and recorded steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import Handle, HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_JOURNAL_BYTES, MAX_MESSAGE_BYTES, MAX_STEPS, MIB
from flowfabric_worker.engine.types.admin import ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.attempts import Completion, StepRecord
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.reads import AttemptSummary
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    LEASE,
    claim_one,
    created,
    info_of,
    refused,
    request,
    running,
    same_partition_ids,
    upkeep_all,
)

MILLISECOND = timedelta(milliseconds=1)
EVERY_BYTE = bytes(range(256))


def progress_of(engine: Engine, handle: Handle) -> tuple[int | None, str | None]:
    info = info_of(engine, handle.execution_id)
    return info.progress_percent, info.progress_message


# Progress.


def test_progress_stores_percent_and_message(engine: Engine) -> None:
    handle = running(engine).handle
    assert progress_of(engine, handle) == (None, None)
    engine.progress(handle, 50, "halfway there")
    assert progress_of(engine, handle) == (50, "halfway there")


def test_progress_keeps_what_it_is_not_given(engine: Engine) -> None:
    handle = running(engine).handle
    engine.progress(handle, 50, "halfway there")
    engine.progress(handle, percent=60)
    assert progress_of(engine, handle) == (60, "halfway there")
    engine.progress(handle, message="nearly")
    assert progress_of(engine, handle) == (60, "nearly")
    engine.progress(handle, percent=0)
    assert progress_of(engine, handle) == (0, "nearly")


def test_progress_without_anything_to_say_changes_nothing(engine: Engine, dump: Dump) -> None:
    handle = running(engine).handle
    before = dump()
    engine.progress(handle)
    assert dump() == before


@pytest.mark.parametrize("percent", [0, 100])
def test_progress_goes_from_0_to_100(engine: Engine, percent: int) -> None:
    handle = running(engine).handle
    engine.progress(handle, percent)
    assert progress_of(engine, handle) == (percent, None)


@pytest.mark.parametrize("percent", [-1, 101, True, 50.0, "50"])
def test_progress_outside_of_that_is_refused(engine: Engine, dump: Dump, percent: Any) -> None:
    handle = running(engine).handle
    before = dump()
    with refused("invalid_input"):
        engine.progress(handle, percent)
    assert dump() == before


@pytest.mark.parametrize("message", [b"bytes", 5])
def test_a_message_that_is_no_text_is_refused(engine: Engine, dump: Dump, message: Any) -> None:
    handle = running(engine).handle
    before = dump()
    for call in (engine.progress, engine.cancel):
        with refused("invalid_input"):
            call(handle, **{"message" if call == engine.progress else "reason": message})
    assert dump() == before


def test_a_long_message_is_cut_between_two_characters(engine: Engine) -> None:
    handle = running(engine).handle
    engine.progress(handle, message="ä" * MAX_MESSAGE_BYTES)
    assert progress_of(engine, handle)[1] == "ä" * (MAX_MESSAGE_BYTES // 2)
    engine.progress(handle, message="x" + "ä" * MAX_MESSAGE_BYTES)
    assert progress_of(engine, handle)[1] == "x" + "ä" * (MAX_MESSAGE_BYTES // 2 - 1)


def test_progress_neither_renews_nor_changes_the_state(engine: Engine, clock: Clock) -> None:
    handle = running(engine).handle
    before = info_of(engine, handle.execution_id)
    clock.move(timedelta(seconds=10))
    engine.progress(handle, 10)
    after = info_of(engine, handle.execution_id)
    assert (after.state, after.current_lease) == (before.state, before.current_lease)
    assert after.last_mutation_at_ms == clock.ms


# Completing.


@pytest.mark.parametrize("result", [None, b"", b"=", EVERY_BYTE], ids=["none", "empty", "mark", "every byte"])
def test_a_result_comes_back_as_it_was_given(engine: Engine, result: bytes | None) -> None:
    handle = running(engine).handle
    engine.complete(handle, result)
    assert engine.get_execution_result(handle.execution_id) == result
    outcome = engine.read_outcome(handle.execution_id)
    assert outcome is not None
    assert (outcome.outcome, outcome.result) == (TerminalOutcome.SUCCESS, result)


def test_a_result_may_be_as_large_as_the_limit(engine: Engine) -> None:
    handle = running(engine).handle
    engine.complete(handle, b"x" * MIB)
    assert engine.get_execution_result(handle.execution_id) == b"x" * MIB


@pytest.mark.parametrize(("result", "code"), [(b"x" * (MIB + 1), "payload_too_large"), ("text", "invalid_input")])
def test_a_wrong_result_is_refused_and_the_lease_lives_on(engine: Engine, dump: Dump, result: Any, code: str) -> None:
    handle = running(engine).handle
    before = dump()
    with refused(code):
        engine.complete(handle, result)
    assert dump() == before
    engine.complete(handle)


def test_completing_ends_lease_and_attempt(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    clock.move(timedelta(seconds=3))
    engine.complete(claimed.handle)
    info = info_of(engine, claimed.execution_id)
    assert info.public_state is PublicState.COMPLETED
    assert info.current_lease is None
    assert info.current_attempt == AttemptSummary(attempt_id=claimed.handle.attempt_id, attempt_index=0)
    assert (info.total_attempt_count, info.ended_at_ms, info.error) == (1, clock.ms, None)


def test_complete_many_answers_each_execution_by_itself(engine: Engine) -> None:
    good, stale = running(engine).handle, running(engine).handle
    answers = engine.complete_many(
        [Completion(handle=good, payload=b"1"), Completion(handle=attrs.evolve(stale, lease_epoch=9), payload=b"2")]
    )
    assert [getattr(answer, "code", answer) for answer in answers] == [None, "stale_lease"]
    assert engine.get_execution_result(good.execution_id) == b"1"
    assert engine.read_execution_state(stale.execution_id) is PublicState.ACTIVE


def test_cancelling_by_the_holder_keeps_the_reason_and_who_it_was(engine: Engine) -> None:
    handle = running(engine).handle
    engine.cancel(handle, "not needed any more")
    info = info_of(engine, handle.execution_id)
    assert info.public_state is PublicState.CANCELLED
    assert (info.cancel_reason, info.cancelled_by) == ("not needed any more", "lease_holder")


# Handing back: release, delay, wait_children.


def assert_resumed(before: Claimed, after: Claimed) -> None:
    """Assert that the same attempt goes on under a new lease."""
    assert after.handle.kind is HandleKind.RESUMED
    assert after.execution_id == before.execution_id
    assert after.handle.attempt_id == before.handle.attempt_id
    assert after.handle.attempt_index == before.handle.attempt_index
    assert after.handle.lease_epoch == before.handle.lease_epoch + 1
    assert after.handle.lease_id != before.handle.lease_id
    assert (after.retry_count, after.reclaim_count) == (before.retry_count, before.reclaim_count)
    assert after.attempt_type == before.attempt_type


def pair_in_order(engine: Engine) -> tuple[ExecutionId, ExecutionId]:
    """Return two executions of one partition, the first of which is claimed first."""
    first, second = same_partition_ids(engine, 2)
    for each in (first, second):
        created(engine, execution_id=each)
    return first, second


def test_released_work_is_ready_at_once_and_its_attempt_goes_on(engine: Engine) -> None:
    claimed = running(engine)
    engine.release(claimed.handle)
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.current_lease, info.past_attempts) == (PublicState.WAITING, None, ())
    assert_resumed(claimed, claim_one(engine, claimed.handle.lane, worker="w2"))


@pytest.mark.parametrize("wait", [timedelta(), timedelta(seconds=5)])
def test_released_work_keeps_its_place(engine: Engine, clock: Clock, wait: timedelta) -> None:
    first, _ = pair_in_order(engine)
    claimed = claim_one(engine)
    assert claimed.execution_id == first
    clock.move(timedelta(seconds=1))
    engine.release(claimed.handle, wait)
    clock.move(wait)
    upkeep_all(engine)
    assert claim_one(engine).execution_id == first


def test_work_released_not_before_a_time_waits_for_it(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    engine.release(claimed.handle, timedelta(seconds=5))
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.delay_until_ms) == (PublicState.DELAYED, clock.ms + 5000)
    clock.move(timedelta(seconds=5) - MILLISECOND)
    assert engine.claim_many(request(claimed.handle.lane)) == []
    clock.move(MILLISECOND)
    assert_resumed(claimed, claim_one(engine, claimed.handle.lane))


def test_release_many_answers_each_lease_by_itself(engine: Engine) -> None:
    good, stale = running(engine).handle, running(engine).handle
    answers = engine.release_many([good, attrs.evolve(stale, lease_epoch=9)])
    assert [getattr(answer, "code", answer) for answer in answers] == [True, "stale_lease"]
    assert engine.read_execution_state(good.execution_id) is PublicState.WAITING
    assert engine.read_execution_state(stale.execution_id) is PublicState.ACTIVE


@pytest.mark.parametrize("form", ["duration", "moment"])
def test_delayed_work_goes_on_in_its_attempt_when_the_moment_has_come(engine: Engine, clock: Clock, form: str) -> None:
    claimed = running(engine)
    minute = timedelta(minutes=1)
    engine.delay(claimed.handle, minute if form == "duration" else clock.now + minute)
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.delay_until_ms) == (PublicState.DELAYED, clock.ms + 60_000)
    clock.move(minute - MILLISECOND)
    assert engine.claim_many(request(claimed.handle.lane)) == []
    clock.move(MILLISECOND)
    assert_resumed(claimed, claim_one(engine, claimed.handle.lane))


@pytest.mark.parametrize("moment", [timedelta(), datetime(2029, 12, 31, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)])
def test_a_delay_until_a_moment_that_is_past_makes_it_ready_at_once(
    engine: Engine, clock: Clock, moment: datetime | timedelta
) -> None:
    assert clock.now == datetime(2030, 1, 1, tzinfo=UTC)
    claimed = running(engine)
    engine.delay(claimed.handle, moment)
    assert engine.read_execution_state(claimed.execution_id) is PublicState.WAITING
    assert_resumed(claimed, claim_one(engine, claimed.handle.lane))


@pytest.mark.parametrize("moment", [timedelta(seconds=-1), datetime(2030, 1, 1), "tomorrow", None])
def test_a_delay_that_is_no_moment_is_refused(engine: Engine, dump: Dump, moment: Any) -> None:
    handle = running(engine).handle
    before = dump()
    with refused("invalid_input"):
        engine.delay(handle, moment)
    assert dump() == before


def test_delayed_work_keeps_its_place(engine: Engine, clock: Clock) -> None:
    first, _ = pair_in_order(engine)
    engine.delay(claim_one(engine).handle, timedelta(seconds=5))
    clock.move(timedelta(seconds=5))
    upkeep_all(engine)
    assert claim_one(engine).execution_id == first


def test_waiting_for_children_when_there_are_none_makes_it_ready_at_once(engine: Engine) -> None:
    claimed = running(engine)
    engine.wait_children(claimed.handle)
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.current_lease) == (PublicState.WAITING, None)
    assert_resumed(claimed, claim_one(engine, claimed.handle.lane))


# Steps.


def test_the_first_result_of_a_step_stands(engine: Engine, dump: Dump) -> None:
    handle = running(engine).handle
    assert engine.record_step(handle, "charge", EVERY_BYTE) == StepRecord(value=EVERY_BYTE, first=True)
    before = dump()
    assert engine.record_step(handle, "charge", b"other") == StepRecord(value=EVERY_BYTE, first=False)
    assert dump() == before
    assert engine.record_step(handle, "ship", b"") == StepRecord(value=b"", first=True)
    assert info_of(engine, handle.execution_id).step_count == 2


def retried(engine: Engine, handle: Handle) -> None:
    engine.fail(handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())


def replayed(engine: Engine, handle: Handle) -> None:
    engine.complete(handle)
    engine.replay_execution(ReplayExecutionArgs(execution_id=handle.execution_id))


def revoked(engine: Engine, handle: Handle) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=handle.execution_id))


@pytest.mark.parametrize(
    "interrupt", [retried, replayed, revoked, Engine.release], ids=["retry", "replay", "reclaim", "resume"]
)
def test_the_journal_comes_with_every_later_claim(engine: Engine, interrupt: Any) -> None:
    claimed = running(engine, policy=ExecutionPolicy(retry=RetryPolicy()))
    assert claimed.journal == {}
    engine.record_step(claimed.handle, "charge", EVERY_BYTE)
    engine.record_step(claimed.handle, "größe", b"")
    interrupt(engine, claimed.handle)
    again = claim_one(engine, claimed.handle.lane, worker="w2")
    assert again.journal == {"charge": EVERY_BYTE, "größe": b""}
    assert engine.record_step(again.handle, "charge", b"other") == StepRecord(value=EVERY_BYTE, first=False)


def test_a_journal_holds_a_thousand_steps_and_no_more(engine: Engine, dump: Dump) -> None:
    handle = running(engine).handle
    for number in range(MAX_STEPS):
        engine.record_step(handle, f"step {number}", b"%d" % number)
    before = dump()
    with refused("journal_full") as caught:
        engine.record_step(handle, "one more", b"")
    assert caught.value.details["limit"] == str(MAX_STEPS)
    assert dump() == before
    # What is known is still answered, and the whole journal comes with the next claim.
    assert engine.record_step(handle, "step 0", b"") == StepRecord(value=b"0", first=False)
    engine.release(handle)
    journal = claim_one(engine, handle.lane).journal
    assert journal == {f"step {number}": b"%d" % number for number in range(MAX_STEPS)}


def test_a_journal_holds_a_mebibyte_of_names_and_values_and_no_more(engine: Engine, dump: Dump) -> None:
    handle = running(engine).handle
    engine.record_step(handle, "half", b"x" * (MAX_JOURNAL_BYTES // 2))
    rest = MAX_JOURNAL_BYTES - MAX_JOURNAL_BYTES // 2 - len("half") - len("rest")
    before = dump()
    with refused("journal_full") as caught:
        engine.record_step(handle, "rest", b"x" * (rest + 1))
    assert caught.value.details["limit"] == str(MAX_JOURNAL_BYTES)
    assert dump() == before
    assert engine.record_step(handle, "rest", b"x" * rest).first
    with refused("journal_full"):
        engine.record_step(handle, "a", b"")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("", b"", "invalid_input"),
        ("x" * 257, b"", "invalid_input"),
        ("a\0b", b"", "invalid_input"),
        ("big", b"x" * (MIB + 1), "payload_too_large"),
        ("text", "text", "invalid_input"),
        ("nothing", None, "invalid_input"),
    ],
)
def test_a_step_that_is_not_valid_is_refused(engine: Engine, dump: Dump, name: str, value: Any, code: str) -> None:
    handle = running(engine).handle
    before = dump()
    with refused(code):
        engine.record_step(handle, name, value)
    assert dump() == before


def test_recording_a_step_does_not_renew_the_lease(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    clock.move(LEASE - MILLISECOND)
    engine.record_step(claimed.handle, "late", b"")
    clock.move(MILLISECOND)
    with refused("lease_expired"):
        engine.record_step(claimed.handle, "too late", b"")
