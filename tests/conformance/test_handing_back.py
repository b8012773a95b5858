"""Claims that are handed back only if another worker waits for them, and claims whose answers were lost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import TransportError
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.types.attempts import TerminalFailed
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    LANE,
    LEASE,
    all_created,
    claim_one,
    claimed_ids,
    created,
    creation,
    info_of,
    refused,
    request,
    running,
)
from tests.support.lossy_store import LosingStore, empty_store_beside
from tests.support.waiters import waiting

GPU = ExecutionPolicy(requires=frozenset({"gpu"}))


def test_work_that_no_other_worker_waits_for_is_kept(engine: Engine, dump: Dump) -> None:
    claimed = running(engine, lane=LANE)
    before = dump()

    assert engine.release_many([claimed.handle], if_wanted=True) == [False]
    assert dump() == before


def test_work_that_another_worker_waits_for_is_handed_over_at_once(engine: Engine) -> None:
    claimed = running(engine, lane=LANE, worker="busy")
    idle = waiting(engine, worker="idle")

    assert engine.release_many([claimed.handle], if_wanted=True) == [True]
    assert [each.execution_id for each in idle.result()] == [claimed.execution_id]


def test_work_that_the_waiting_worker_cannot_take_is_kept(engine: Engine) -> None:
    created(engine, policy=GPU)
    (claimed,) = engine.claim_many(request(capabilities=frozenset({"gpu"})))
    idle = waiting(engine, worker="idle")

    assert engine.release_many([claimed.handle], if_wanted=True) == [False]
    assert engine.read_execution_state(claimed.execution_id) is PublicState.ACTIVE
    created(engine)
    assert len(idle.result()) == 1


def test_each_of_many_is_answered_by_itself(engine: Engine) -> None:
    wanted, unwanted, lost = running(engine, lane=LANE), running(engine), running(engine, lane=LANE)
    idle = waiting(engine, worker="idle")
    handles = [wanted.handle, unwanted.handle, attrs.evolve(lost.handle, lease_epoch=9)]

    answers = engine.release_many(handles, if_wanted=True)

    assert [getattr(answer, "code", answer) for answer in answers] == [True, False, "stale_lease"]
    assert [each.execution_id for each in idle.result()] == [wanted.execution_id]


def test_a_delay_for_what_is_handed_over_is_refused(engine: Engine, dump: Dump) -> None:
    claimed = running(engine, lane=LANE)
    before = dump()

    with refused("invalid_input"):
        engine.release_many([claimed.handle], timedelta(seconds=1), if_wanted=True)
    assert dump() == before


def test_a_release_as_lost_makes_a_new_attempt_ready_at_once(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)

    assert engine.release_many([claimed.handle], lost="it stopped itself") == [True]
    again = claim_one(engine, LANE, worker="w2")
    info = info_of(engine, claimed.execution_id)
    assert (again.handle.kind, again.reclaim_count, again.handle.attempt_index) == (HandleKind.RECLAIMED, 1, 1)
    assert [past.error for past in info.past_attempts] == ["worker w1: it stopped itself"]
    with refused("stale_lease"):
        engine.complete(claimed.handle)


def test_a_repeated_release_as_lost_changes_nothing(engine: Engine, dump: Dump) -> None:
    claimed = running(engine, lane=LANE)
    assert engine.release_many([claimed.handle], lost="it stopped itself") == [True]
    before = dump()

    assert engine.release_many([claimed.handle], lost="it stopped itself") == [True]
    assert dump() == before


def test_what_counts_as_a_loss_wakes_a_worker_that_waits(engine: Engine) -> None:
    claimed = running(engine, lane=LANE, worker="busy")
    idle = waiting(engine, worker="idle")
    engine.release_many([claimed.handle], lost="it stopped itself")

    assert [each.execution_id for each in idle.result()] == [claimed.execution_id]


@pytest.mark.parametrize("most", [0, 2])
def test_what_counts_as_a_loss_once_too_often_ends_failed_at_once(engine: Engine, most: int) -> None:
    created(engine, policy=ExecutionPolicy(max_reclaim_count=most))
    for _ in range(most):
        assert engine.release_many([claim_one(engine).handle], lost="it stopped itself") == [True]
    claimed = claim_one(engine)

    assert engine.release_many([claimed.handle], lost="it stopped again") == [TerminalFailed()]
    assert engine.release_many([claimed.handle], lost="it stopped again") == [TerminalFailed()]
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.error, info.error_class) == (
        PublicState.FAILED, "reclaims_exhausted", "infra_crash",
    )  # fmt: skip
    assert info.error_detail == b"worker w1: it stopped again"
    assert claimed_ids(engine) == []


def test_a_loss_that_was_said_is_forgotten_with_the_next_lease(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE)
    engine.release_many([claimed.handle], lost="it stopped itself")
    claim_one(engine, LANE, worker="w2")
    clock.move(LEASE)
    claim_one(engine, LANE, worker="w3")

    errors = [past.error for past in info_of(engine, claimed.execution_id).past_attempts]
    assert errors == ["worker w1: it stopped itself", "worker w2 stopped renewing its lease"]


@pytest.mark.parametrize("other", [{"if_wanted": True}, {"delay": timedelta(seconds=1)}])
def test_a_loss_with_another_way_of_handing_back_is_refused(engine: Engine, dump: Dump, other: Any) -> None:
    claimed = running(engine, lane=LANE)
    before = dump()

    with refused("invalid_input"):
        engine.release_many([claimed.handle], lost="it stopped itself", **other)
    assert dump() == before


@pytest.fixture
def losing(engine: Engine) -> LosingStore:
    return LosingStore(empty_store_beside(engine))


def test_a_lost_answer_of_a_claim_is_given_to_the_next_claim_of_the_worker(engine: Engine, losing: LosingStore) -> None:
    impatient = Engine(lambda: (losing, engine.partitions), retry_for=0)
    impatient.prepare(testing=True)
    ids = all_created(impatient, [creation() for _ in range(6)])
    worker = f"w{uuid4().hex}"
    assert impatient.claim_many(request("elsewhere", worker=worker)) == []

    with losing.losing(), pytest.raises(TransportError):
        impatient.claim_many(request(worker=worker, limit=500))
    found = impatient.claim_many(request(worker=worker, limit=500))
    while more := impatient.claim_many(request(worker=worker, limit=500)):
        found += more

    assert sorted(each.execution_id for each in found) == sorted(ids)
    assert {each.handle.lease_epoch for each in found} == {1}
    for each in found:
        impatient.complete(each.handle, b"done")
    assert {impatient.read_execution_state(each) for each in ids} == {PublicState.COMPLETED}
    impatient.close()
