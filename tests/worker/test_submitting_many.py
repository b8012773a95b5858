"""submit_many in bounded batches, and what it tells of a call that is wrong; tasks, runs and ids that are pickled."""

from __future__ import annotations

import copy
import json
import pickle
import tracemalloc
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from flowfabric_worker import Call, Client, EncodingError, FlowRun, Worker
from flowfabric_worker.engine.errors import TransportError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.run import Run

MIB = 1024 * 1024
worker = Worker("pickled", f"memory://{uuid4().hex}")


@worker.task
def measure(text: str, more: int = 0) -> int:
    return len(text) + more


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    worker.close()


def test_submitting_many_large_calls_holds_about_two_batches() -> None:
    sizes: list[int] = []
    store = worker.engine.store  # type: ignore[attr-defined]  # the store is looked at here

    def begin(function: str, partition: int, arguments: Any, timeout: float) -> Any:
        # A creation has eight arguments, and its payload is the sixth.
        count = len(arguments) // 8
        sizes.append(sum(len(each) for each in arguments if isinstance(each, bytes)))
        # One of them is stored, without its payload.
        stored = [*arguments[:5], b"", *arguments[6:8]]
        return lambda: store.call(function, partition, stored, timeout) * count

    try:
        measure.submit("warm")
        store.begin = begin
        tracemalloc.start()
        runs = measure.submit_many((str(number) * (MIB // 2),) for number in [7] * 200)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        del store.begin

    assert len(runs) == 200
    assert max(sizes) <= 3 * MIB
    assert most < 24 * MIB


def test_the_next_batch_is_encoded_while_one_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    store = worker.engine.store  # type: ignore[attr-defined]  # the store is looked at here
    begin = store.begin

    def noted(*arguments: Any) -> Any:
        reply = begin(*arguments)
        told.append("sent")

        def received() -> Any:
            told.append("answered")
            return reply()

        return received

    def calls() -> Iterator[tuple[str]]:
        for number in range(300):
            if number % 100 == 99:
                told.append("encoded")
            yield (str(number),)

    monkeypatch.setattr(store, "begin", noted)
    assert len(measure.submit_many(calls())) == 300
    first = ["encoded", "sent", "encoded", "answered", "sent"]
    assert told == [*first, "encoded", "answered", "sent", "answered"]


def test_what_is_under_way_is_told_when_the_calls_break_off() -> None:
    def calls() -> Iterator[tuple[str]]:
        yield from ((str(number),) for number in range(100))
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more") as broken:
        measure.submit_many(calls())

    assert len(broken.value.runs) == 100  # type: ignore[attr-defined]  # submit_many puts it there


def test_a_batch_whose_reply_is_lost_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = worker.engine.store  # type: ignore[attr-defined]  # the store is looked at here
    begin, lost = store.begin, [True, False, True]

    def losing(*arguments: Any) -> Any:
        reply = begin(*arguments)

        def received() -> Any:
            answer = reply()
            if lost.pop():
                raise TransportError
            return answer

        return received

    before = waiting()
    monkeypatch.setattr(store, "begin", losing)
    runs = measure.submit_many((str(number),) for number in range(300))

    assert len({run.id for run in runs}) == 300
    assert all(run.created for run in runs)
    assert waiting() - before == 300


def waiting() -> int:
    """Return how many executions wait in all lanes."""
    return sum(lane.depths.get(PublicState.WAITING, 0) for lane in worker.engine.list_lanes().lanes)


def test_a_wrong_call_submits_nothing_of_its_batch_and_lists_earlier_runs() -> None:
    def calls() -> Iterator[Any]:
        yield from ((str(number),) for number in range(650))
        yield Call("a", unknown=1)

    before = waiting()
    with pytest.raises(TypeError, match="unknown") as wrong:
        measure.submit_many(calls())

    runs: list[Run[int]] = wrong.value.runs  # type: ignore[attr-defined]  # submit_many puts it there
    assert len(runs) == 600
    assert all(run.state() == "waiting" for run in runs)
    assert waiting() - before == 600
    assert "600 runs were submitted before" in wrong.value.__notes__[0]


def test_an_argument_that_cannot_be_encoded_lists_the_runs_before_it() -> None:
    with Client(worker.url) as client, pytest.raises(EncodingError) as wrong:
        client.submit_many("any", [[1], [object()]], force=True)

    assert wrong.value.runs == []  # type: ignore[attr-defined]  # as above


def test_calls_with_places_and_names_are_submitted_in_order() -> None:
    runs = measure.submit_many([Call("a"), Call("bb", more=1), ("ccc", 2), Call(text="dddd")])
    worker.run_until_idle()

    assert [run.result(0) for run in runs] == [1, 3, 5, 4]


def test_a_task_is_pickled_by_reference() -> None:
    assert pickle.loads(pickle.dumps(measure)) is measure
    assert copy.deepcopy(measure) is measure

    @worker.task(name=uuid4().hex)
    def inside() -> None: ...

    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(inside)


def test_a_run_is_pickled_with_its_task_and_its_id() -> None:
    run = measure.submit("abc")
    again = pickle.loads(pickle.dumps(run))
    worker.run_until_idle()

    assert (again.id, again.created) == (run.id, True)
    assert again.result(0) == 3


def test_a_run_of_a_client_is_pickled_with_its_client() -> None:
    with Client(worker.url) as client:
        run = client.submit("pickled.measure", ["abc"], force=True)
        again = pickle.loads(pickle.dumps(run))
        worker.run_until_idle()

        assert again.id == run.id
        assert again.result(0) == 3


def submitted_flow(owner: Worker | Client) -> FlowRun:
    with owner.flow("lengths") as flow:
        short = measure.node("abc")
        flow.returns([short, measure.options(priority=3).node("abcdef", more=1)])
    return flow.submit()


@pytest.mark.parametrize("owner", ["worker", "client", "reopened"])
def test_a_run_of_a_flow_is_pickled_with_its_nodes_and_its_id(owner: str) -> None:
    with Client(worker.url) as client:
        run = submitted_flow(worker if owner == "worker" else client)
        run = client.flow_run(run.id) if owner == "reopened" else run
        again = pickle.loads(pickle.dumps(run))
        copied = copy.deepcopy(run)
        worker.run_until_idle()

        for each in (again, copied):
            assert (each.id, each.created) == (run.id, run.created)
            assert each.result(0) == run.result(0)
            assert each.node("measure").result(0) == 3
            assert each.describe() == run.describe()


def test_a_run_of_a_flow_without_nodes_says_that_it_is_not_pickled() -> None:
    with worker.flow("empty") as flow:
        pass
    with pytest.raises(pickle.PicklingError, match="pickle its id"):
        pickle.dumps(flow.submit())


def test_an_id_is_a_text_that_is_pickled_and_written_as_json() -> None:
    identity = ExecutionId.mint()

    assert identity == str(identity) == f"{{fp:0}}:{identity.uuid}"
    assert json.loads(json.dumps({"id": identity})) == {"id": str(identity)}
    for again in (pickle.loads(pickle.dumps(identity)), copy.deepcopy(identity)):
        assert (type(again), again, again.partition_number, again.uuid) == (ExecutionId, identity, 0, identity.uuid)
    assert {identity: 1}[str(identity)] == 1  # type: ignore[index]  # one hash for both


def test_an_id_has_a_form_that_is_safe_in_shells_and_urls() -> None:
    run = measure.submit("abc")
    plain = run.id.plain

    assert not set(plain) & set("{}: ")
    assert ExecutionId.parse(plain) == run.id
    assert measure.run(plain).id == run.id
    with Client(worker.url) as client:
        info = client.get(plain)
        client.cancel(plain)
    assert info is not None
    assert info.execution_id == run.id
    assert run.state() == "cancelled"


@pytest.mark.parametrize("wrong", ["0-", "-0-" + "0" * 36, "00-01890000-0000-7000-8000-000000000000", "0:01890000"])
def test_another_plain_form_is_no_id(wrong: str) -> None:
    with pytest.raises(ValidationError):
        ExecutionId.parse(wrong)


def test_ids_sort_by_partition_and_uuid() -> None:
    low, high = ExecutionId(2, "b" * 36), ExecutionId(10, "a" * 36)

    assert sorted([high, low]) == [low, high]
    assert (low < high, low <= high, high > low, high >= low, low > high) == (True, True, True, True, False)
