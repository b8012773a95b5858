"""Claims whose answers were lost: what they got is found again, and never given to a request for something else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import ConflictError, TransportError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.claiming import (
    Claimed,
    ClaimForWorkerArgs,
    ClaimPolicy,
    ClaimRequest,
    LaneRequest,
    ReclaimToken,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.conftest import Clock
from tests.support.executions import LANE, claim_one, created, refused, request, same_partition_ids
from tests.support.lossy_store import LosingStore

SECOND = timedelta(seconds=1)


class Impatient:
    """An engine that does not send a call again by itself, on a store that loses answers when it is told to."""

    def __init__(self, engine: Engine) -> None:
        self.store = LosingStore(engine.store)
        self.engine = Engine(lambda: (self.store, None), retry_for=0)
        self.engine.prepare()
        # It knows the classes from now on, so the next call that it makes is the claim.
        nothing = request(LANE, "other", "gpu", tasks=frozenset({"nothing"}))
        assert self.engine.claim_many(nothing) == []

    def lose(self, wanted: ClaimRequest) -> None:
        """Make a claim whose answer is lost."""
        with self.store.losing(), pytest.raises(TransportError):
            self.engine.claim_many(wanted)


@pytest.fixture
def work(engine: Engine) -> list[ExecutionId]:
    kinds = ((LANE, "send"), (LANE, "print"), ("other", "send"))
    return [
        created(engine, lane=lane, task=task, execution_id=execution)
        for (lane, task), execution in zip(kinds, same_partition_ids(engine, 3), strict=True)
    ]


@pytest.fixture
def impatient(engine: Engine, work: list[ExecutionId]) -> Impatient:
    assert work
    return Impatient(engine)


def named(claimed: list[Claimed]) -> set[ExecutionId]:
    return {each.execution_id for each in claimed}


def test_a_lost_claim_is_found_again_by_the_next_claim(impatient: Impatient, work: list[ExecutionId]) -> None:
    impatient.lose(request(LANE, limit=2))

    assert named(impatient.engine.claim_many(request(LANE, limit=2))) == set(work[:2])


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        (request("other"), [2]),
        (request(LANE, limit=5, tasks=frozenset({"print"})), [1]),
        (request(LANE, limit=1), [0]),
        (request(LANE, "other", limit=5), [0, 1, 2]),
    ],
    ids=["another lane", "another task", "fewer", "more lanes"],
)
def test_a_claim_for_something_else_gets_nothing_of_a_lost_one(
    engine: Engine, impatient: Impatient, work: list[ExecutionId], wanted: ClaimRequest, got: list[int]
) -> None:
    impatient.lose(request(LANE, limit=2))

    claimed: list[Claimed] = []
    while more := impatient.engine.claim_many(wanted):
        claimed += more
        if len(claimed) >= len(got):
            break

    assert named(claimed) == {work[index] for index in got}
    left = {execution for index, execution in enumerate(work) if index not in got}
    # What was not asked for was handed back at once, with no lease lost.
    again = engine.claim_many(request(LANE, "other", worker="w2", limit=5))
    assert named(again) == left
    assert all(each.reclaim_count == 0 for each in again)


def test_a_claim_without_a_capability_gets_nothing_that_needs_it(engine: Engine, impatient: Impatient) -> None:
    needing = created(engine, lane="gpu", policy=ExecutionPolicy(requires=frozenset({"gpu"})))
    impatient.engine.claim_many(request("gpu"))
    able = request("gpu", capabilities=frozenset({"gpu"}))
    impatient.lose(able)

    assert impatient.engine.claim_many(request("gpu")) == []
    assert named(engine.claim_many(request("gpu", worker="w2", capabilities=frozenset({"gpu"})))) == {needing}


def test_a_lost_claim_whose_lease_has_run_out_gives_new_leases(
    impatient: Impatient, work: list[ExecutionId], clock: Clock
) -> None:
    impatient.lose(request(LANE, limit=2, lease=SECOND))
    clock.move(2 * SECOND)

    claimed = impatient.engine.claim_many(request(LANE, limit=2, lease=SECOND))

    assert named(claimed) == set(work[:2])
    assert all(each.lease_expires_at_ms > clock.ms for each in claimed)
    for each in claimed:
        impatient.engine.renew(each.handle)


def test_a_repeat_under_a_claim_id_gives_only_leases_that_still_hold(engine: Engine, clock: Clock) -> None:
    created(engine)
    claim = request(claim_id=str(uuid4()), lease=SECOND)
    assert len(engine.claim_many(claim)) == 1
    clock.move(2 * SECOND)

    assert engine.claim_many(claim) == []


def test_the_last_eight_claims_of_an_instance_are_answered_again(engine: Engine) -> None:
    claims = [request(claim_id=str(uuid4())) for _ in range(9)]
    first = []
    for claim, execution in zip(claims, same_partition_ids(engine, 9), strict=True):
        created(engine, execution_id=execution)
        first.append(engine.claim_many(claim))

    assert [engine.claim_many(claim) for claim in claims[1:]] == first[1:]
    assert engine.claim_many(claims[0]) == []


def test_two_threads_with_one_instance_id_share_no_execution(engine: Engine, work: list[ExecutionId]) -> None:
    store = LosingStore(engine.store)
    tried = Engine(lambda: (store, None))
    tried.prepare()
    more = [created(engine) for _ in range(30)]

    # Six claims take everything, so neither thread is pushed out of the eight claims that are remembered.
    def claim_all(_: int) -> list[Claimed]:
        got: list[Claimed] = []
        while claimed := tried.claim_many(request(LANE, "other", limit=6)):
            got += claimed
        return got

    with store.losing(), ThreadPoolExecutor(2) as pool:
        claimed = [each for got in pool.map(claim_all, range(2)) for each in got]

    assert len(claimed) == len(work) + len(more)
    assert named(claimed) == {*work, *more}
    for each in claimed:
        tried.complete(each.handle)


def test_a_repeated_reservation_gets_its_answer_also_after_it_was_redeemed(engine: Engine) -> None:
    created(engine)
    created(engine)
    args = ClaimForWorkerArgs(lane=LANE, worker_id="w1", worker_instance_id="w1", grant_id=str(uuid4()))
    grant = engine.claim_for_worker(args)

    claim_one(engine, worker="w2")

    assert engine.claim_for_worker(args) == grant


def as_worker(worker: str) -> ClaimPolicy:
    return ClaimPolicy(worker_id=worker, worker_instance_id="host-1")


def redeem(engine: Engine) -> object:
    """Redeem a grant of instance `host-2` as instance `host-1`."""
    grant = engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="two", worker_instance_id="host-2"))
    assert grant is not None
    return engine.claim_from_reclaim(ReclaimToken(grant=grant, worker_id="two", worker_instance_id="host-1"))


OTHERS: dict[str, Callable[[Engine], object]] = {
    "claim": lambda engine: engine.claim(LANE, frozenset(), as_worker("two")),
    "register": lambda engine: engine.register_worker(
        RegisterWorkerArgs(worker_id="two", worker_instance_id="host-1", lanes=(LANE,))
    ),
    "reserve": lambda engine: engine.claim_for_worker(
        ClaimForWorkerArgs(lane=LANE, worker_id="two", worker_instance_id="host-1")
    ),
    "redeem": redeem,
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_instance_belongs_to_one_worker_id(engine: Engine, clock: Clock, other: str) -> None:
    for execution in same_partition_ids(engine, 4):
        created(engine, execution_id=execution)
    engine.register_worker(RegisterWorkerArgs(worker_id="one", worker_instance_id="host-1", lanes=(LANE,)))
    engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="one", worker_instance_id="host-1"))
    engine.claim_many(ClaimRequest(lanes=(LaneRequest(lane=LANE),), policy=as_worker("one")))

    with refused("instance_of_other_worker") as caught:
        OTHERS[other](engine)

    assert isinstance(caught.value, ConflictError)
    assert caught.value.details["worker_id"] == "one"
    # When worker `one` is gone, another worker may take the name of its instance.
    clock.move(timedelta(minutes=5))
    assert OTHERS[other](engine)


@pytest.mark.parametrize("other", ["claim", "reserve", "redeem"])
@pytest.mark.parametrize("first", ["claim", "reserve", "redeem"])
def test_leases_and_reservations_alike_bind_an_instance_to_a_worker_id(engine: Engine, first: str, other: str) -> None:
    for execution in same_partition_ids(engine, 3):
        created(engine, execution_id=execution)
    grant = engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="one", worker_instance_id="host-0"))
    assert grant is not None
    ways: dict[str, Callable[[], object]] = {
        "claim": lambda: engine.claim(LANE, frozenset(), as_worker("one")),
        "reserve": lambda: engine.claim_for_worker(
            ClaimForWorkerArgs(lane=LANE, worker_id="one", worker_instance_id="host-1")
        ),
        "redeem": lambda: engine.claim_from_reclaim(
            ReclaimToken(grant=grant, worker_id="one", worker_instance_id="host-1")
        ),
    }
    assert ways[first]()

    with refused("instance_of_other_worker"):
        OTHERS[other](engine)
