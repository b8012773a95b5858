"""Pausing lanes, setting tags, and purging."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.limits import MAX_TAG_VALUE_BYTES, MAX_TAGS
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.claiming import ClaimForWorkerArgs
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    LANE,
    LEASE,
    claim_one,
    created,
    depths,
    info_of,
    refused,
    request,
    running,
    upkeep_all,
)
from tests.support.phases import ACTIVE, ENDED, HOUR, PHASES_LANE, RUNNABLE, Phase, Phases

# Lanes.


def test_a_paused_lane_hands_nothing_out_and_loses_nothing(engine: Engine) -> None:
    kept = created(engine)
    other = created(engine, lane="other")
    assert engine.pause_lane(LANE) is True
    assert engine.claim_many(request(LANE, "other", limit=9))[0].execution_id == other
    late = created(engine)
    assert engine.claim_many(request(LANE)) == []
    assert engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="w", worker_instance_id="w")) is None
    assert engine.resume_lane(LANE) is True
    assert {each.execution_id for each in engine.claim_many(request(LANE, limit=9))} == {kept, late}


def test_work_that_runs_in_a_paused_lane_goes_on(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    engine.pause_lane(LANE)
    engine.renew(claimed.handle)
    engine.release(claimed.handle)
    assert engine.claim_many(request()) == []
    engine.resume_lane(LANE)
    engine.complete(claim_one(engine).handle)


def test_pausing_again_changes_nothing_and_says_so(engine: Engine, clock: Clock, dump: Dump) -> None:
    created(engine)
    engine.pause_lane(LANE)
    since = clock.ms
    clock.move(HOUR)
    before = dump()
    assert engine.pause_lane(LANE) is False
    assert dump() == before
    assert engine.list_lanes().lanes[0].paused_since_ms == since
    engine.resume_lane(LANE)
    before = dump()
    assert engine.resume_lane(LANE) is False
    assert dump() == before
    assert engine.list_lanes().lanes[0].paused_since_ms is None


def test_a_lane_can_be_paused_before_its_first_use(engine: Engine) -> None:
    assert engine.resume_lane("later") is False
    assert engine.pause_lane("later") is True
    assert [lane.lane for lane in engine.list_lanes().lanes] == ["later"]
    created(engine, lane="later")
    assert engine.claim_many(request("later")) == []


@pytest.mark.parametrize("lane", ["", "x" * 65, "größe", "a\n", None])
def test_an_invalid_lane_is_not_paused(engine: Engine, dump: Dump, lane: Any) -> None:
    before = dump()
    for operation in (engine.pause_lane, engine.resume_lane):
        with refused("invalid_input"):
            operation(lane)
    assert dump() == before


# Tags.


@pytest.mark.parametrize("phase", RUNNABLE + ACTIVE + ENDED)
def test_tags_are_added_and_replaced_in_any_phase(engine: Engine, clock: Clock, phase: Phase) -> None:
    execution_id = phase(Phases(engine, clock))
    state = info_of(engine, execution_id).state
    assert engine.set_tags(execution_id, {"app.user": "ada", "app.kind": "mail"}) == 2
    assert engine.set_tags(execution_id, {"app.kind": "letter", "app.size": ""}) == 3
    info = info_of(engine, execution_id)
    assert info.tags == {"app.user": "ada", "app.kind": "letter", "app.size": ""}
    assert info.state == state


def test_tags_of_the_creation_are_kept_and_come_with_the_claim(engine: Engine) -> None:
    execution_id = created(engine, tags={"app.user": "ada"})
    engine.set_tags(execution_id, {"größe": "groß"})
    assert claim_one(engine).tags == {"app.user": "ada", "größe": "groß"}


@pytest.mark.usefixtures("clock")
def test_setting_the_same_tags_again_gives_the_same_answer(engine: Engine, dump: Dump) -> None:
    execution_id = created(engine)
    assert engine.set_tags(execution_id, {"b": "2", "a": "1"}) == 2
    before = dump()
    assert engine.set_tags(execution_id, {"a": "1", "b": "2"}) == 2
    assert dump() == before


def test_an_execution_has_64_tags_and_no_more(engine: Engine, dump: Dump) -> None:
    execution_id = created(engine)
    assert engine.set_tags(execution_id, {f"t{number}": "" for number in range(MAX_TAGS - 1)}) == MAX_TAGS - 1
    before = dump()
    with refused("invalid_input") as caught:
        engine.set_tags(execution_id, {"one": "", "two": ""})
    assert "64 tags" in str(caught.value)
    assert dump() == before
    assert engine.set_tags(execution_id, {"one": "", "t0": "new"}) == MAX_TAGS
    with refused("invalid_input"):
        engine.set_tags(created(engine), {f"t{number}": "" for number in range(MAX_TAGS + 1)})


def test_a_tag_holds_a_kibibyte_and_no_more(engine: Engine) -> None:
    execution_id = created(engine)
    assert engine.set_tags(execution_id, {"big": "x" * MAX_TAG_VALUE_BYTES}) == 1
    with refused("invalid_input"):
        engine.set_tags(execution_id, {"big": "x" * (MAX_TAG_VALUE_BYTES + 1)})


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({}, "invalid_input"),
        ({"": "x"}, "invalid_tag_key"),
        ({"a\nb": "x"}, "invalid_tag_key"),
        ({"x" * 257: "x"}, "invalid_tag_key"),
        ({5: "x"}, "invalid_tag_key"),
        ({"a": 5}, "invalid_input"),
        ({"a": "x\0y"}, "invalid_input"),
        ({"good": "x", "bad": "\ud800"}, "invalid_input"),
        ([("a", "b")], "invalid_input"),
    ],
)
def test_tags_that_are_not_valid_are_refused_whole(engine: Engine, dump: Dump, tags: Any, code: str) -> None:
    execution_id = created(engine)
    before = dump()
    with refused(code):
        engine.set_tags(execution_id, tags)
    assert dump() == before


# Purging.


@pytest.mark.parametrize("phase", RUNNABLE + ACTIVE)
def test_an_unfinished_execution_is_not_purged(engine: Engine, clock: Clock, dump: Dump, phase: Phase) -> None:
    execution_id = phase(Phases(engine, clock))
    before = dump()
    with refused("execution_not_terminal"):
        engine.purge(execution_id)
    assert dump() == before


@pytest.mark.parametrize("phase", ENDED)
def test_purging_leaves_nothing_but_the_announcement_of_the_end(
    engine: Engine, clock: Clock, dump: Dump, phase: Phase
) -> None:
    execution_id = phase(Phases(engine, clock))
    # A worker's last claim is remembered for as long as its lease.
    clock.move(LEASE)
    upkeep_all(engine)
    engine.purge(execution_id)
    traces = {key for key, value in dump().items() if execution_id.uuid in key + str(value)}
    assert all(key.endswith(":feed") for key in traces)
    assert depths(engine, PHASES_LANE) == {}
    assert engine.read_execution_info(execution_id) is None
    with refused("execution_not_found"):
        engine.purge(execution_id)


def test_purging_frees_the_key(engine: Engine, dump: Dump) -> None:
    first = created(engine, idempotency_key="order-17")
    engine.cancel_execution(CancelExecutionArgs(execution_id=first))
    engine.purge(first)
    assert not [key for key in dump() if "order-17" in key]
    assert created(engine, idempotency_key="order-17") != first
