"""What a replay keeps of the run before: all steps and answered waits, none, or those before a named one."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_JOURNAL_BYTES, MAX_STEPS
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.suspension import IssuedWaitpoint, ResumeReason, SignalEffect
from tests.support.dumps import Dump
from tests.support.executions import LANE, claim_one, damage, info_of, refused, running
from tests.support.suspensions import MINUTE, effect_of, signal, suspend, waiting_for


def replay(engine: Engine, execution: ExecutionId, **changes: Any) -> Claimed:
    """Replay an execution, and claim it."""
    engine.replay_execution(ReplayExecutionArgs(execution_id=execution, **changes))
    return claim_one(engine)


def ended_after(engine: Engine, *steps: str) -> ExecutionId:
    """Return an execution that ended after some steps."""
    claimed = running(engine, lane=LANE)
    for step in steps:
        engine.record_step(claimed.handle, step, step.encode())
    engine.complete(claimed.handle)
    return claimed.execution_id


def ended_after_a_wait(engine: Engine) -> tuple[ExecutionId, IssuedWaitpoint]:
    """Return an execution that ended after a step and an answered wait, and the waitpoint of that wait."""
    claimed = running(engine, lane=LANE)
    engine.record_step(claimed.handle, "ask", b"")
    (waitpoint,) = suspend(engine, claimed, "go")
    signal(engine, claimed.execution_id, waitpoint, idempotency_key="jane")
    again = claim_one(engine)
    engine.record_step(again.handle, "ff:wait go", b"yes")
    engine.record_step(again.handle, "act", b"done")
    engine.complete(again.handle)
    return claimed.execution_id, waitpoint


def test_steps_and_answered_waits_are_kept_by_default(engine: Engine) -> None:
    execution, waitpoint = ended_after_a_wait(engine)

    again = replay(engine, execution)

    assert again.journal == {"ask": b"", "ff:wait go": b"yes", "act": b"done"}
    assert engine.observe_signals(again.handle).reason is ResumeReason.SIGNAL
    assert engine.create_waitpoint(again.handle, "go", MINUTE).waitpoint_id == waitpoint.waitpoint_id


def test_forgotten_steps_run_again_and_their_results_replace_the_first(engine: Engine) -> None:
    execution = ended_after(engine, "a", "b")

    again = replay(engine, execution, steps="forget")

    assert (again.journal, info_of(engine, execution).step_count) == ({}, 0)
    assert engine.record_step(again.handle, "b", b"2").first
    engine.complete(again.handle)
    assert replay(engine, execution).journal == {"b": b"2"}


@pytest.mark.parametrize("kept", [{"steps": "forget"}, {"from_step": "go"}, {"from_step": "ask"}])
def test_a_forgotten_wait_begins_again_with_another_waitpoint(engine: Engine, kept: dict[str, str]) -> None:
    execution, old = ended_after_a_wait(engine)

    again = replay(engine, execution, **kept)

    assert set(again.journal) == ({"ask"} if kept == {"from_step": "go"} else set())
    assert engine.observe_signals(again.handle).reason is None
    (new,) = suspend(engine, again, "go")
    assert new.waitpoint_id != old.waitpoint_id
    with refused("waitpoint_closed") as closed:
        signal(engine, execution, old)
    assert closed.value.details["why"] == "resumed"
    answer = signal(engine, execution, new, idempotency_key="jane")
    assert effect_of(answer) is SignalEffect.RESUME_CONDITION_SATISFIED
    resumed = claim_one(engine)
    assert len(engine.observe_signals(resumed.handle).signals) == 1


def test_a_waitpoint_is_the_same_again_after_it_was_forgotten_once(engine: Engine) -> None:
    execution, _ = ended_after_a_wait(engine)
    again = replay(engine, execution, steps="forget")
    new = engine.create_waitpoint(again.handle, "go", MINUTE)
    engine.complete(again.handle)

    assert engine.create_waitpoint(replay(engine, execution).handle, "go", MINUTE).waitpoint_id == new.waitpoint_id


@pytest.mark.parametrize(
    ("name", "left"),
    [("a", []), ("b", ["a"]), ("c", ["a", "b"]), ("d", ["a", "b", "c"]), ("ff:raised c", ["a", "b"])],
)
def test_steps_before_the_named_one_are_kept(engine: Engine, name: str, left: list[str]) -> None:
    execution = ended_after(engine, "a", "b", "ff:raised c", "d")

    again = replay(engine, execution, from_step=name)

    assert list(again.journal) == ["ff:raised c" if each == "c" else each for each in left]


def test_a_full_journal_has_space_for_the_steps_that_were_forgotten(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    half = b"x" * (MAX_JOURNAL_BYTES // 2 - 5)
    for name in ("first", "again"):
        engine.record_step(claimed.handle, name, half)
    engine.complete(claimed.handle)

    again = replay(engine, claimed.execution_id, from_step="again")

    assert engine.record_step(again.handle, "other", half).first
    with refused("journal_full"):
        engine.record_step(again.handle, "more", b"")


@pytest.mark.parametrize("kept", [{"steps": "forget"}, {"from_step": "step 1"}])
def test_a_thousand_steps_are_forgotten_at_once(engine: Engine, dump: Dump, kept: dict[str, str]) -> None:
    execution = ended_after(engine, *(f"step {number}" for number in range(MAX_STEPS)))

    again = replay(engine, execution, **kept)

    assert list(again.journal) == ([] if "steps" in kept else ["step 0"])
    (record,) = (value for key, value in dump().items() if key.endswith(f":x:{execution.uuid}"))
    assert sum(field.startswith(b"step") for field in record) == 1 + 2 * len(again.journal)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"from_step": "z"}, "step_not_found"),
        ({"from_step": "*"}, "step_not_found"),
        ({"from_step": ""}, "invalid_input"),
        ({"from_step": "a", "steps": "forget"}, "invalid_input"),
        ({"steps": "some"}, "invalid_input"),
    ],
)
def test_a_replay_that_names_no_step_is_refused(engine: Engine, dump: Dump, changes: dict[str, str], code: str) -> None:
    execution = ended_after(engine, "a")
    before = dump()

    with refused(code):
        engine.replay_execution(ReplayExecutionArgs(execution_id=execution, **changes))  # type: ignore[arg-type]

    assert dump() == before


def test_a_damaged_journal_is_told_by_its_field(engine: Engine) -> None:
    execution = ended_after(engine, "a", "b")
    damage(engine, execution, "step#1", None)

    with refused("corruption") as damaged:
        engine.replay_execution(ReplayExecutionArgs(execution_id=execution, from_step="b"))

    assert damaged.value.details["field"] == "steps"


def test_a_replay_opens_again_what_the_end_closed_not_what_was_answered(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    (answered,) = suspend(engine, claimed, "answered")
    signal(engine, claimed.execution_id, answered)
    (open_one,) = suspend(engine, claim_one(engine), "open")
    engine.cancel_execution(CancelExecutionArgs(execution_id=claimed.execution_id))
    engine.replay_execution(ReplayExecutionArgs(execution_id=claimed.execution_id))
    replayed = claim_one(engine)

    with refused("waitpoint_closed"):
        signal(engine, claimed.execution_id, open_one)
    with refused("waitpoint_not_pending"):
        engine.suspend(replayed.handle, waiting_for("answered"))
    (again,) = suspend(engine, replayed, "open")

    assert again == open_one
    assert effect_of(signal(engine, claimed.execution_id, again)) is SignalEffect.RESUME_CONDITION_SATISFIED
