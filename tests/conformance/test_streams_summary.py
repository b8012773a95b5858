"""An attempt's summary document: merged exactly, kept whole, and versioned."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MAX_SUMMARY_BYTES, MAX_SUMMARY_DEPTH
from flowfabric_worker.engine.types.attempts import FailureClass
from flowfabric_worker.engine.types.streams import FrameAppend, PatchKind, SummaryDocument
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, RETRYING, claim_one, raw_client, raw_key, refused, running
from tests.support.streams import append_all, frame, live, patch, payloads, read_all

# The fifteen vectors of RFC 7396, appendix A: document, patch, result; and what JSON libraries lose.
VECTORS: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
    ({"a": []}, {"b": []}, {"a": [], "b": []}),
    ({}, {"n": 12345678901234567890, "f": 1.0, "p": "a/b"}, {"n": 12345678901234567890, "f": 1.0, "p": "a/b"}),
    ({}, {"s": "__ff_null__", "l": ["__ff_null__"]}, {"s": "__ff_null__", "l": ["__ff_null__"]}),
]


def document_of(engine: Engine, claimed: Any) -> Any:
    summary = engine.read_summary(claimed.execution_id, claimed.handle.attempt_index)
    assert summary is not None
    return json.loads(summary.document)


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize(("document", "change", "result"), VECTORS)
def test_a_summary_is_merged_as_rfc_7396_says(engine: Engine, document: Any, change: Any, result: Any) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [patch(json.dumps(document)), patch(json.dumps(change))])
    assert document_of(engine, claimed) == result


def test_a_summary_has_a_version_and_its_times(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    assert engine.read_summary(claimed.execution_id, 0) is None
    first = engine.append_frame(claimed.handle, patch('{"a":1,"b":{"c":2}}'))
    clock.move(timedelta(seconds=1))
    second = engine.append_frame(claimed.handle, patch('{"b":{"d":3},"a":null}'))

    assert (first.summary_version, second.summary_version) == (1, 2)
    assert engine.read_summary(claimed.execution_id, 0) == SummaryDocument(
        document=b'{"b":{"c":2,"d":3}}',
        version=2,
        patch_kind=PatchKind.JSON_MERGE_PATCH,
        first_applied_at_ms=clock.ms - 1000,
        last_updated_at_ms=clock.ms,
    )
    assert [each.summary_version for each in read_all(engine, claimed.execution_id).frames] == [1, 2]


def test_a_summary_stays_after_the_end_and_after_its_frames(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [patch(f'{{"n": {number}}}') for number in range(300)])
    engine.complete(claimed.handle)

    found = read_all(engine, claimed.execution_id)

    assert document_of(engine, claimed) == {"n": 299}
    assert len(found.frames) == 256
    assert found.dropped
    assert found.frames[0].frame_id == found.first_kept_id


def test_each_attempt_has_a_summary_to_itself(engine: Engine) -> None:
    claimed = running(engine, policy=RETRYING)
    engine.append_frame(claimed.handle, patch('{"a": 1}'))
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
    again = claim_one(engine, claimed.handle.lane)
    assert engine.read_summary(claimed.execution_id, 1) is None
    engine.append_frame(again.handle, patch('{"b": 2}'))
    assert document_of(engine, claimed) == {"a": 1}
    assert document_of(engine, again) == {"b": 2}


def test_a_resumed_attempt_merges_into_the_summary_that_stands(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [patch('{"a": 1}', seq=1), patch('{"b": 2}', seq=2)])
    engine.release(claimed.handle)
    # Another process, which has seen nothing of it.
    other = Engine(lambda: (engine.store, None))
    again = claim_one(other, claimed.handle.lane)

    outcomes = append_all(other, again.handle, [patch('{"b": 2}', seq=2), patch('{"a": null}', seq=3)])

    assert [each.summary_version for each in outcomes] == [2, 3]
    assert document_of(engine, claimed) == {"b": 2}


def test_racing_merges_lose_nothing(engine: Engine) -> None:
    claimed = running(engine)
    others = [Engine(lambda: (engine.store, None)) for _ in range(4)]
    problems: list[EngineError] = []

    def write(place: int) -> None:
        try:
            for number in range(10):
                others[place].append_frame(claimed.handle, patch(f'{{"{place}.{number}": 1}}'))
        except EngineError as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    assert len(document_of(engine, claimed)) == 40
    summary = engine.read_summary(claimed.execution_id, 0)
    assert summary is not None
    assert summary.version == 40


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b'{"a": NaN}', nested(MAX_SUMMARY_DEPTH + 1).encode()])
def test_an_invalid_patch_is_refused_alone(engine: Engine, dump: Dump, payload: bytes) -> None:
    claimed = running(engine)
    before = dump()
    with refused("invalid_patch"):
        engine.append_frame(claimed.handle, patch(payload))
    assert dump() == before

    outcomes = engine.append_frames(
        [
            FrameAppend(handle=claimed.handle, frame=each)
            for each in (patch('{"a": 1}'), patch(payload), patch(nested(MAX_SUMMARY_DEPTH)))
        ]
    )

    assert [isinstance(each, EngineError) for each in outcomes] == [False, True, False]


def test_a_summary_has_1_mib_and_not_a_byte_more(engine: Engine, dump: Dump) -> None:
    claimed = running(engine)
    size = MAX_SUMMARY_BYTES // 32
    # Each member is its name, its text, two pairs of quotes and a colon; commas and braces make the rest.
    members = [patch(json.dumps({f"{n:02}": "x" * (size - 8)})) for n in range(31)]
    append_all(engine, claimed.handle, members)
    rest = MAX_SUMMARY_BYTES - (31 * size + 1) - 8
    full = patch(json.dumps({"zz": "x" * rest}))
    over = patch(json.dumps({"zz": "x" * (rest + 1)}))
    before = dump()
    with refused("invalid_patch"):
        engine.append_frame(claimed.handle, over)
    assert dump() == before
    engine.append_frame(claimed.handle, full)
    summary = engine.read_summary(claimed.execution_id, 0)
    assert summary is not None
    assert len(summary.document) == MAX_SUMMARY_BYTES


def test_a_repeated_summary_frame_merges_nothing_twice(engine: Engine, dump: Dump) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [patch('{"a": 1}', seq=1), patch('{"a": 2}', seq=2)])
    before = dump()
    outcome = engine.append_frame(claimed.handle, patch('{"a": 1}', seq=1))
    assert outcome.summary_version == 1
    assert dump() == before
    with refused("frame_conflict"):
        engine.append_frame(claimed.handle, patch('{"a": 3}', seq=2))


def test_a_damaged_summary_says_so(engine: Engine) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, patch('{"a": 1}'))
    partition = claimed.execution_id.partition_number
    key = raw_key(engine, partition, f"stream:{claimed.execution_id.uuid}")
    raw_client(engine, partition).hdel(key, "s0")
    with refused("corruption") as caught:
        engine.read_summary(claimed.execution_id, 0)
    assert caught.value.details["field"] == "summary"


def test_a_summary_and_frames_of_other_modes_go_out_together(engine: Engine) -> None:
    claimed = running(engine)
    outcomes = append_all(engine, claimed.handle, [frame("1"), patch('{"a":1}'), live("2"), patch('{"b":2}')])
    assert [each.summary_version for each in outcomes] == [None, 1, None, 2]
    assert payloads(read_all(engine, claimed.execution_id))[::2] == [b"1", b"2"]
    assert document_of(engine, claimed) == {"a": 1, "b": 2}
