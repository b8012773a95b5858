"""Identities: execution ids and how they are minted, names, lanes and capabilities."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.ids import (
    ExecutionId,
    check_capabilities,
    check_execution_id,
    check_lane,
    check_name,
    uuid7,
)
from flowfabric_worker.engine.limits import (
    MAX_CAPABILITIES,
    MAX_CAPABILITIES_BYTES,
    MAX_LANE_CHARACTERS,
    MAX_NAME_BYTES,
)
from flowfabric_worker.engine.partitions import partition_of_uuid
from flowfabric_worker.engine.plain_ids import with_plain_ids

UUID_TEXT = "550e8400-e29b-41d4-a716-446655440000"


def refusal(call: Any, *args: Any) -> EngineError:
    """Return the error with which a call is refused."""
    with pytest.raises(ValidationError) as caught:
        call(*args)
    return caught.value


# Execution ids


@pytest.mark.parametrize("partition", [0, 1, 255, 65535])
def test_an_execution_id_reads_back(partition: int) -> None:
    text = f"{{fp:{partition}}}:{UUID_TEXT}"

    parsed = ExecutionId.parse(text)

    assert (parsed.partition_number, parsed.uuid, str(parsed)) == (partition, UUID_TEXT, text)
    assert repr(parsed) == f"ExecutionId('{text}')"


@pytest.mark.parametrize(
    "text",
    [
        "",
        UUID_TEXT,
        f"fp:1:{UUID_TEXT}",
        f"{{fp:1}}{UUID_TEXT}",
        f"{{fp:}}:{UUID_TEXT}",
        f"{{fp:-1}}:{UUID_TEXT}",
        f"{{fp:+5}}:{UUID_TEXT}",
        f"{{fp:007}}:{UUID_TEXT}",
        f"{{fp:65536}}:{UUID_TEXT}",
        f"{{fp:x}}:{UUID_TEXT}",
        f"{{b:1}}:{UUID_TEXT}",
        f"{{fp:1}}:{UUID_TEXT.upper()}",
        f"{{fp:1}}:{UUID_TEXT.replace('-', '')}",
        f"{{fp:1}}:{{{UUID_TEXT}}}",
        f"{{fp:1}}:urn:uuid:{UUID_TEXT}",
        f"{{fp:1}}:{UUID_TEXT[:-1]}",
        f"{{fp:1}}:{UUID_TEXT}0",
        f" {{fp:1}}:{UUID_TEXT}",
        f"{{fp:1}}:{UUID_TEXT}\n",
        "{fp:1}:not-a-uuid",
        None,
        7,
        b"{fp:1}:550e8400-e29b-41d4-a716-446655440000",
    ],
    ids=ascii,
)
def test_an_id_in_another_spelling_is_refused(text: Any) -> None:
    assert refusal(ExecutionId.parse, text).code == "invalid_execution_id"


def test_an_id_is_taken_in_either_form_and_is_a_str_with_all_its_methods() -> None:
    identity = ExecutionId(3, UUID_TEXT)

    assert check_execution_id(identity) == check_execution_id(identity.plain) == check_execution_id(str(identity))
    assert identity.partition(":") == ("{fp", ":", f"3}}:{UUID_TEXT}")
    assert with_plain_ids(f"execution {identity} of {identity}.") == f"execution 3-{UUID_TEXT} of 3-{UUID_TEXT}."
    for wrong in (None, 3, UUID_TEXT):
        assert refusal(check_execution_id, wrong).code == "invalid_execution_id"


def test_a_minted_id_lies_in_the_partition_of_its_uuid() -> None:
    for partitions in (1, 5, 16, 1024):
        minted = ExecutionId.mint(partitions)
        assert minted.partition_number == partition_of_uuid(UUID(minted.uuid), partitions)
        assert ExecutionId.parse(str(minted)) == minted


def test_minted_ids_of_a_partition_sort_by_the_time_they_were_made() -> None:
    ids = [ExecutionId.mint() for _ in range(100)]

    assert sorted(ids) == ids
    assert sorted(ids, key=str) == ids


# UUIDv7


def test_a_uuid_has_the_version_and_variant_of_uuid7() -> None:
    for _ in range(1000):
        minted = uuid7()
        assert minted.version == 7
        assert minted.variant == "specified in RFC 4122"


def test_a_uuid_begins_with_the_time_in_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    stamp = uuid7().int >> 80
    after = time.time_ns() // 1_000_000

    # Many minted at once may run ahead of the clock by as much as their counter overflows.
    assert before <= stamp <= after + 10


def test_uuids_grow_strictly_within_a_millisecond() -> None:
    minted = [uuid7() for _ in range(20_000)]

    assert all(earlier < later for earlier, later in itertools.pairwise(minted))


def test_uuids_grow_strictly_in_every_thread_and_none_is_made_twice() -> None:
    made: list[list[UUID]] = [[] for _ in range(8)]
    begin = threading.Barrier(len(made))

    def mint(into: list[UUID]) -> None:
        begin.wait()
        into.extend(uuid7() for _ in range(2000))

    threads = [threading.Thread(target=mint, args=(each,)) for each in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(sorted(each) == each for each in made)
    # The random end may not be what keeps them apart: time and counter do.
    assert len({minted.int >> 48 for each in made for minted in each}) == 16_000


def test_uuids_grow_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = uuid7()
    monkeypatch.setattr(time, "time_ns", lambda: 0)

    assert uuid7() > first


# Names


@pytest.mark.parametrize("name", ["a", " ", "a b", "ü", "日本", "🙂", "{fp:1}", "a:b|c", "x" * MAX_NAME_BYTES])
def test_a_printable_text_is_a_name(name: str) -> None:
    assert check_name(name, "it") == name


@pytest.mark.parametrize("name", ["", "\0", "a\nb", "\t", "\x7f", "\x85", "\ud800", "a\udfffb"], ids=ascii)
def test_control_characters_and_surrogates_are_in_no_name(name: str) -> None:
    error = refusal(check_name, name, "the task")

    assert error.code == "invalid_input"
    assert "the task" in str(error)
    str(error).encode()


@pytest.mark.parametrize("name", [None, 7, b"a", ["a"]], ids=repr)
def test_a_value_that_is_no_text_is_no_name(name: Any) -> None:
    assert refusal(check_name, name, "it").code == "invalid_input"


@pytest.mark.parametrize(("letter", "size"), [("x", 1), ("ü", 2), ("日", 3), ("🙂", 4)])
def test_a_name_is_measured_in_bytes(letter: str, size: int) -> None:
    longest = letter * (MAX_NAME_BYTES // size)

    assert check_name(longest, "it") == longest
    assert refusal(check_name, longest + letter, "it").code == "invalid_input"


@given(st.text())
def test_any_text_is_a_name_within_the_limit_or_refused(text: str) -> None:
    try:
        name = check_name(text, "it")
    except ValidationError:
        return
    assert name == text
    assert 0 < len(text.encode()) <= MAX_NAME_BYTES


# Lanes


@pytest.mark.parametrize("lane", ["a", " ", "mail", "A-b_c.d/e:f", "~" * MAX_LANE_CHARACTERS])
def test_printable_ascii_is_a_lane(lane: str) -> None:
    assert check_lane(lane) == lane


@pytest.mark.parametrize(
    "lane", ["", "x" * (MAX_LANE_CHARACTERS + 1), "mäil", "a\n", "a\0", "\x7f", "\x1f", None, 7, b"mail"], ids=ascii
)
def test_text_that_is_not_printable_ascii_is_no_lane(lane: Any) -> None:
    assert refusal(check_lane, lane).code == "invalid_input"


# Capabilities


def test_capabilities_are_sorted_by_their_bytes_and_stand_once() -> None:
    assert check_capabilities(["b", "a", "ü", "B", "b"]) == ("B", "a", "b", "ü")
    assert check_capabilities(()) == ()


@pytest.mark.parametrize(
    "tokens",
    ["gpu", b"gpu", None, 5, ["a,b"], [""], ["a b"], ["\t"], ["\x7f"], ["\u00a0"], [None], [1], [{}], ["\ud800"]],
    ids=ascii,
)
def test_text_with_a_forbidden_character_is_no_capability(tokens: Any) -> None:
    assert refusal(check_capabilities, tokens).code == "invalid_capabilities"


def test_capabilities_have_a_most_of_tokens() -> None:
    tokens = [f"{number:03}" for number in range(MAX_CAPABILITIES)]

    assert len(check_capabilities(tokens)) == MAX_CAPABILITIES
    assert check_capabilities([*tokens, tokens[0]]) == check_capabilities(tokens)
    assert refusal(check_capabilities, [*tokens, "more"]).code == "invalid_capabilities"


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_capabilities_have_a_most_of_bytes_with_the_commas_between_them(letter: str) -> None:
    size = len(letter.encode())
    tokens = [letter * (1000 // size) + str(number) for number in range(4)]
    remaining = MAX_CAPABILITIES_BYTES - len(",".join(tokens).encode()) - 1

    assert check_capabilities([*tokens, "x" * remaining])
    assert refusal(check_capabilities, [*tokens, "x" * (remaining + 1)]).code == "invalid_capabilities"


def test_a_forked_process_mints_ids_though_its_parent_was_minting_one() -> None:
    with uuid7._lock:
        child = os.fork()
        if not child:
            # A child that waits for the parent's lock would wait for ever.
            signal.alarm(5)
            uuid7()
            os._exit(0)

    assert os.waitpid(child, 0)[1] == 0
